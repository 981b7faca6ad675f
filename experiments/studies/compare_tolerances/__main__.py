from experiments.studies.compare_tolerances.run import main

main()
