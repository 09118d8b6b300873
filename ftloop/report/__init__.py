"""What a person looks at when a run is finished: periphery, which the loop does not need and a fork may delete."""
