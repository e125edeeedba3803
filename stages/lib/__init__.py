"""What several stages share. A stage imports from here and from `stages.core`, never from another stage."""
