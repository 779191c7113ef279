package library

// Sonames that are known: libvixDiskLib.so.6 (VDDK 6.x) to .9.
const (
	Oldest = 6
	Newest = 9
)
