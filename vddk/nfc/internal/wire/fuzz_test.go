package wire

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzHeader(f *testing.F) {
	f.Add(AppendHeader(nil, Header{IO, IOSize, 4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err == nil && !bytes.Equal(AppendHeader(nil, h), b[:HeaderSize]) {
			t.Errorf("%+v does not write as it was read", h)
		}
	})
}

// FuzzPayload gives the same bytes to every parser; what is accepted must write as it was read, where all bytes count.
func FuzzPayload(f *testing.F) {
	f.Add(AppendIO(nil, ReadRequest(handle, 0, 66048, FastLZ)))
	f.Add(AppendOpen(nil, OpenRequest{13, NFCDisk, OpenReadOnly}))
	f.Add(AppendQuery(nil, Query{handle, 65536, 0, 16}))
	f.Add(AppendFailure(nil, Failure{11, 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := ParseIO(b); err == nil {
			if x.FragOff+x.FragLen > x.Total || x.FragOff+x.FragLen < x.FragOff {
				t.Errorf("fragment outside: %+v", x)
			}
			if y, err := ParseIO(AppendIO(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseOpen(b); err == nil {
			if y, err := ParseOpen(AppendOpen(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseFile(b); err == nil {
			if y, err := ParseFile(AppendFile(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseQuery(b); err == nil {
			if y, err := ParseQuery(AppendQuery(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseFailure(b); err == nil {
			if y, err := ParseFailure(AppendFailure(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseSession(b); err == nil {
			if y, err := ParseSession(AppendSession(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseDDBRequest(b); err == nil {
			if y, err := ParseDDBRequest(AppendDDBRequest(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
		if x, err := ParseDDBReply(b); err == nil {
			if y, err := ParseDDBReply(AppendDDBReply(nil, x)); err != nil || x != y {
				t.Errorf("%+v reads back as %+v (%v)", x, y, err)
			}
		}
	})
}

// guarded decodes into a buffer with a guard behind, which must stay untouched.
func guarded(t *testing.T, n int, src []byte, c Compression) {
	all := bytes.Repeat([]byte{0xee}, n+16)
	var k Codec
	if err := k.Decode(all[:n:n], src, c); err != nil {
		return
	}
	if !bytes.Equal(all[n:], bytes.Repeat([]byte{0xee}, 16)) {
		t.Error("written behind the end")
	}
}

func FuzzFastLZ(f *testing.F) {
	var k Codec
	for _, s := range []string{"abcabcabcabcabcabcabcabc", strings.Repeat("vmkeep ", 100)} {
		b, _ := k.Encode(nil, []byte(s), FastLZ)
		f.Add(b, uint16(len(s)))
	}
	f.Fuzz(func(t *testing.T, src []byte, n uint16) {
		guarded(t, int(n), src, FastLZ)
		roundtrip(t, src, FastLZ)
		roundtrip(t, bytes.Repeat(src, 1+70000/(1+len(src))), FastLZ)
	})
}

func FuzzSkipz(f *testing.F) {
	f.Add(encodeSkipz(nil, append(make([]byte, 200), 1, 2, 3)), uint16(203))
	f.Fuzz(func(t *testing.T, src []byte, n uint16) {
		guarded(t, int(n), src, Skipz)
		roundtrip(t, src, Skipz)
		roundtrip(t, append(append(make([]byte, n), src...), make([]byte, n)...), Skipz)
	})
}

func FuzzZlib(f *testing.F) {
	var k Codec
	b, _ := k.Encode(nil, make([]byte, 512), Zlib)
	f.Add(b, uint16(512))
	f.Fuzz(func(t *testing.T, src []byte, n uint16) { guarded(t, int(n), src, Zlib) })
}

func roundtrip(t *testing.T, src []byte, c Compression) {
	var k Codec
	out, used := k.Encode(nil, src, c)
	if used == None {
		return
	}
	dst := make([]byte, len(src))
	if err := k.Decode(dst, out, used); err != nil || !bytes.Equal(dst, src) {
		t.Errorf("%s of %d bytes does not come back (%v)", c, len(src), err)
	}
}

func FuzzAuthd(f *testing.F) {
	f.Add([]byte("220 VMware Authentication Daemon Version 1.10: SSL Required, SHA256 supported\r\n"))
	f.Add([]byte("530 Please login\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		line, err := ReadLine(r)
		if len(b)-r.Len() > MaxLine {
			t.Errorf("read %d bytes for one line", len(b)-r.Len())
		}
		if err != nil {
			return
		}
		if c := Code(line); c < 0 || c > 999 {
			t.Errorf("code %d", c)
		}
		_, _ = ParseGreeting(line)
		_, _ = ParseThumbprint(line)
	})
}
