from experiments.studies.compare_descents.run import main

main()
