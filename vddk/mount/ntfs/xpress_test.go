package ntfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// table is a table of code lengths with some bytes of it set.
func table(set map[int]string) []byte {
	b := make([]byte, 256)
	for at, s := range set {
		v, err := hex.DecodeString(s)
		if err != nil {
			panic(err)
		}
		copy(b[at:], v)
	}
	return b
}

// The examples of [MS-XCA] 3.2.
func TestXpressExamples(t *testing.T) {
	for _, c := range []struct {
		codes map[int]string
		bits  string
		want  string
	}{
		{map[int]string{48: "5055555555555555555555454404", 128: "04"}, "d8523ed794115be9195ff9d67cdf8d0400000000", "abcdefghijklmnopqrstuvwxyz"},
		{map[int]string{48: "3023", 128: "02", 143: "20"}, "a8dc0000ff2601", strings.Repeat("abc", 100)},
	} {
		bits, err := hex.DecodeString(c.bits)
		if err != nil {
			t.Fatal(err)
		}
		in, out := append(table(c.codes), bits...), make([]byte, len(c.want))
		if err := xpress(out, in); err != nil || string(out) != c.want {
			t.Errorf("%q, %v", out, err)
		}
		if err := xpress(make([]byte, 600), in); !errors.Is(err, guestfs.ErrDamaged) && len(c.want) > 100 {
			t.Errorf("more than there is: %v", err)
		}
	}
}

func FuzzXpress(f *testing.F) {
	f.Add(append(table(map[int]string{48: "3023", 128: "02", 143: "20"}), 0xa8, 0xdc, 0, 0, 0xff, 0x26, 1))
	f.Fuzz(func(t *testing.T, b []byte) { _ = xpress(make([]byte, 4096), b) })
}

func FuzzLZNT1(f *testing.F) {
	f.Add([]byte{0x04, 0xb0, 0x02, 'a', 0x00, 0x10, 'b', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out := bytes.Repeat([]byte{1}, 9000)
		if lznt1(out, b) == nil && len(b) < 2 && !bytes.Equal(out, make([]byte, 9000)) {
			t.Error("what was not filled is not zero")
		}
	})
}
