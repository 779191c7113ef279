//go:build !race

package restic

func watchRead([]byte) byte { return 0 }
func watchWrite([]byte)     {}
