from experiments.studies.few_shot.run import main

main()
