"""One file for each revision, in order; a revision that was published is never changed."""
