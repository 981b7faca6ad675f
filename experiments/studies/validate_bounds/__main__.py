from experiments.studies.validate_bounds.run import main

main()
