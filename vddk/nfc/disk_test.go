package nfc_test

import (
	"bytes"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/nfc"
)

func TestReadsAndWrites(t *testing.T) {
	both(t, 3<<20+512, func(t *testing.T, k *kit) {
		for c := nfc.Auto; c <= nfc.Skipz; c++ {
			t.Run(c.String(), func(t *testing.T) {
				k.nfc.Options.Compression = c
				k.write = false
				d := k.must()
				k.all(d)
				k.close(d)

				k.write = true
				d = k.must()
				at := 1<<20 - 512
				for i := range k.content[at : at+1<<20] {
					k.content[at+i] ^= byte(c) + 1
				}
				if _, err := d.WriteAt(k.content[at:at+1<<20], int64(at)); err != nil {
					t.Fatal(err)
				}
				k.all(d)
				k.close(d)
				got := make([]byte, len(k.content))
				if _, err := k.disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, k.content) {
					t.Fatalf("written content differs (%v)", err)
				}
			})
		}
	})
}
