/* The neighbour that the fake needs, as the real library needs those in its directory. */
int vixtest_sibling(void) { return 1; }
