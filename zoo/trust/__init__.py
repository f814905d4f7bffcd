"""What is read from files of others: which classes they may name, and how much they may hold."""
