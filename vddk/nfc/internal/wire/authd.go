package wire

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// MaxLine bounds a line of authd in bytes. Greetings of real hosts have about 200.
const MaxLine = 1024

// SHA256Token in a greeting says that the host understands THUMBPRINT_SHA2; others answer it with 530. Hosts of one
// version differ, so only the token counts.
const SHA256Token = "SHA256 supported"

// ErrLine is a line of authd that is too long or not text.
var ErrLine = errors.New("not a line of authd")

// ReadLine reads up to LF, byte by byte: what follows belongs to TLS or NFC and must stay unread.
// The line comes back without its CR LF.
func ReadLine(r io.Reader) (string, error) {
	var line [MaxLine]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			if n > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		switch c := line[n]; {
		case c == '\n':
			return string(bytes.TrimSuffix(line[:n], []byte{'\r'})), nil
		case c < ' ' && c != '\r' && c != '\t':
			return "", fmt.Errorf("%w: control character %#02x", ErrLine, c)
		}
	}
	return "", fmt.Errorf("%w: more than %d bytes", ErrLine, MaxLine)
}

// Code is the three-digit code a line of authd starts with, 0 when there is none.
func Code(line string) int {
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0
	}
	n := 0
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// Greeting is what authd says first, in clear text:
//
//	220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, ..., SHA256 supported
type Greeting struct {
	Version string // for example "1.10"
	SHA256  bool   // THUMBPRINT_SHA2 is understood
}

// ParseGreeting takes a greeting apart.
func ParseGreeting(line string) (Greeting, error) {
	const name = "VMware Authentication Daemon Version "
	rest, ok := strings.CutPrefix(line, "220 ")
	if !ok || !strings.HasPrefix(rest, name) {
		return Greeting{}, fmt.Errorf("%w: the greeting is not that of VMware's authentication daemon", ErrLine)
	}
	version, features, _ := strings.Cut(rest[len(name):], ":")
	g := Greeting{Version: strings.TrimSpace(version)}
	for token := range strings.SplitSeq(features, ",") {
		g.SHA256 = g.SHA256 || strings.TrimSpace(token) == SHA256Token
	}
	return g, nil
}

// RecordConn is a connection whose reads never cross the end of a TLS record.
//
// crypto/tls reads as much as its connection gives. When TLS is abandoned on a connection that lives on, as authd
// demands, bytes behind the last record would be lost in its buffer. Under this wrapper there is never more to read
// than the current record:
//
//	+------+---------+--------+----------------------+
//	| type | version | length | length bytes, sealed |
//	|  u8  |   u16   | u16 BE |                      |
//	+------+---------+--------+----------------------+
type RecordConn struct {
	net.Conn
	head [5]byte
	have int // bytes of head read so far from Conn
	sent int // bytes of head given out
	body int // bytes of the body not yet given out
}

// Read gives out at most the rest of one record.
func (c *RecordConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.body == 0 && c.sent == len(c.head) {
		c.have, c.sent = 0, 0
	}
	for c.have < len(c.head) {
		n, err := c.Conn.Read(c.head[c.have:])
		c.have += n
		if c.have == len(c.head) {
			c.body = int(c.head[3])<<8 | int(c.head[4])
			break
		}
		if err != nil {
			return 0, err
		}
	}
	if c.sent < len(c.head) {
		n := copy(p, c.head[c.sent:])
		c.sent += n
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.body)])
	c.body -= n
	return n, err
}

// ErrThumbprint is a thumbprint that is neither 20 (SHA-1) nor 32 (SHA-256) bytes of hex.
var ErrThumbprint = errors.New("not a certificate thumbprint")

// ParseThumbprint reads a thumbprint with or without colons, in either case. 20 bytes are SHA-1, 32 are SHA-256.
func ParseThumbprint(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || len(b) != sha1.Size && len(b) != sha256.Size {
		return nil, fmt.Errorf("%w: %q is neither SHA-1 (20 bytes of hex) nor SHA-256 (32)", ErrThumbprint, s)
	}
	return b, nil
}

// Thumbprint spells a digest as vSphere does: upper case hex with colons.
func Thumbprint(digest []byte) string {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, 3*len(digest))
	for i, c := range digest {
		if i > 0 {
			out = append(out, ':')
		}
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}
