from experiments.studies.ridge.run import main

main()
