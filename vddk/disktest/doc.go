// Package disktest holds every [vddk.Disk] to what its comment promises.
//
// A transport's test fills in a [Harness] and calls [Run]. The package hides how the promises are provoked: which
// sizes, which order, which moment of cancelling. [Memory] is a disk that keeps them all, in memory: a reference
// for the suite itself, and a disk for tests of what stands above.
package disktest
