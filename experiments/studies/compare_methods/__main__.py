from experiments.studies.compare_methods.run import main

main()
