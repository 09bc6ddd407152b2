"""What people touch: the job specification, the controller, the job store, the REST API and the command line."""
