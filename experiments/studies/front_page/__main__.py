from experiments.studies.front_page.run import main

main()
