from experiments.studies.deblurring.run import main

main()
