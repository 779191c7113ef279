package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	in := strings.NewReader("220 hello\r\nbare\nrest")
	for _, want := range []string{"220 hello", "bare"} {
		if got, err := ReadLine(in); err != nil || got != want {
			t.Errorf("read %q (%v), not %q", got, err, want)
		}
	}
	if in.Len() != 4 {
		t.Error("bytes behind the line were read")
	}
	if _, err := ReadLine(in); err != io.ErrUnexpectedEOF {
		t.Errorf("a line cut off gives %v", err)
	}
	for _, bad := range []string{strings.Repeat("x", 2000), "220 \x00\n", "\x16\x03\x01\n"} {
		if _, err := ReadLine(strings.NewReader(bad)); !errors.Is(err, ErrLine) {
			t.Errorf("%.20q gives %v", bad, err)
		}
	}
	for line, want := range map[string]int{"220 x": 220, "200": 200, "530-x": 530, "5300": 0, "abc": 0, "": 0, "2x0 ": 0} {
		if got := Code(line); got != want {
			t.Errorf("code of %q is %d", line, got)
		}
	}
}

func TestGreetings(t *testing.T) {
	const head = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, NFCSSL supported/t"
	if g, err := ParseGreeting(head + ", SHA256 supported"); err != nil || g.Version != "1.10" || !g.SHA256 {
		t.Errorf("%+v (%v)", g, err)
	}
	if g, err := ParseGreeting(head); err != nil || g.SHA256 {
		t.Errorf("%+v (%v)", g, err)
	}
	if g, err := ParseGreeting(head + ", SHA256 supported/t"); err != nil || g.SHA256 {
		t.Errorf("another token counts: %+v (%v)", g, err)
	}
	for _, bad := range []string{"", "220 FTP ready", "SSH-2.0-OpenSSH_9.9", "221 VMware Authentication Daemon Version 1.10"} {
		if _, err := ParseGreeting(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestThumbprints(t *testing.T) {
	b, err := ParseThumbprint("aa:BB:" + strings.Repeat("00:", 17) + "ff")
	if err != nil || len(b) != 20 || b[0] != 0xaa || b[19] != 0xff {
		t.Errorf("%x (%v)", b, err)
	}
	if got := Thumbprint(b); got != "AA:BB:"+strings.Repeat("00:", 17)+"FF" {
		t.Error(got)
	}
	for _, bad := range []string{"", "aa", strings.Repeat("zz", 20), strings.Repeat("00", 21)} {
		if _, err := ParseThumbprint(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// stream is a connection that gives what it has in whatever pieces the reader allows.
type stream struct {
	net.Conn
	io.Reader
}

func (s stream) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestRecordsAreNotReadAhead(t *testing.T) {
	record := func(n int) []byte {
		return append([]byte{23, 3, 3, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{1}, n)...)
	}
	all := append(append(record(300), record(0)...), record(5)...)
	ends := map[int]bool{305: true, 310: true, 320: true}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader,
	} {
		src := bytes.NewReader(all)
		c := &RecordConn{Conn: stream{Reader: wrap(src)}}
		var got []byte
		buf := make([]byte, 4096)
		for len(got) < len(all) {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for e := range ends {
				if len(got) < e && len(got)+n > e {
					t.Errorf("%s: a read crosses the end of a record", name)
				}
			}
			got = append(got, buf[:n]...)
			if read := len(all) - src.Len(); read > len(got) && ends[len(got)] {
				t.Errorf("%s: %d bytes read behind the end of a record", name, read-len(got))
			}
		}
		if !bytes.Equal(got, all) {
			t.Errorf("%s: content differs", name)
		}
	}
}
