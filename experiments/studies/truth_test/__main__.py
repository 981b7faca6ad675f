from experiments.studies.truth_test.run import main

main()
