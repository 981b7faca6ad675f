from experiments.studies.compare_lifted.run import main

main()
