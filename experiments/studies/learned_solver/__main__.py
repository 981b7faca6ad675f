from experiments.studies.learned_solver.run import main

main()
