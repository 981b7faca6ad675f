from piggyback.app.restore import main

if __name__ == "__main__":
    main()
