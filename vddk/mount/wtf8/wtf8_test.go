package wtf8

import (
	"encoding/binary"
	"slices"
	"testing"
)

func TestLoneSurrogatesSurvive(t *testing.T) {
	for _, c := range []struct {
		units []uint16
		want  string
	}{
		{[]uint16{'a', 0xe9, 0x65e5}, "aé日"},
		{[]uint16{0xd83d, 0xde00}, "😀"},
		{[]uint16{0xd83d}, "\xed\xa0\xbd"},
		{[]uint16{0xde00, 0xd83d, 'x'}, "\xed\xb8\x80\xed\xa0\xbdx"},
		{nil, ""},
	} {
		var le, be []byte
		for _, u := range c.units {
			le, be = binary.LittleEndian.AppendUint16(le, u), binary.BigEndian.AppendUint16(be, u)
		}
		if got := LE(le); got != c.want || BE(be) != got {
			t.Errorf("%x: %q, want %q", c.units, got, c.want)
		}
		if back := Encode(c.want); !slices.Equal(back, c.units) {
			t.Errorf("%q: %x, want %x", c.want, back, c.units)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("a\x00\x3d\xd8\x00\xde\x3d\xd8"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var want []uint16
		for i := 0; i+1 < len(b); i += 2 {
			want = append(want, binary.LittleEndian.Uint16(b[i:]))
		}
		if got := Encode(LE(b)); !slices.Equal(got, want) {
			t.Errorf("%x came back as %x", want, got)
		}
	})
}
