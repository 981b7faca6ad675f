from experiments.studies.method_table.run import main

main()
