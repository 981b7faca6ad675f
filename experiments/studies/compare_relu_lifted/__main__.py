from experiments.studies.compare_relu_lifted.run import main

main()
