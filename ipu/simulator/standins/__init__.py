"""Stand-ins for what PopTorch applications import beside it: PopART, PopDist and Horovod, so far as they use them."""
