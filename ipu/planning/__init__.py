"""What a plan is made of: work, cost, memory and schedule of a model on IPUs, fitted on published runs."""
