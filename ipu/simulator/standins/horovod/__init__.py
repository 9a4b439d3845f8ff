"""Stand-in for Horovod; all of it that applications of PopTorch use is `horovod.torch`."""
