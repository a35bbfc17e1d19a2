"""What is wrong, or will be, with consumers and their broker; each finding with what to do."""
