package nfc

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Ticket lets one connection reach the files of one machine. vSphere issues it (HostServiceTicket); it is good for
// one connection only.
type Ticket struct {
	Host        string // name or address to dial; vSphere leaves it out on a stand-alone host: the caller fills in that host
	Port        int    // 0: 902
	Service     string // "vpxa-nfc" by vCenter, "nfc" by a stand-alone host
	SessionID   string // secret: never printed
	Thumbprint  string // of the host's certificate, hex with or without colons: SHA-1 or, when 32 bytes, SHA-256
	Certificate string // the host's certificate as PEM, instead of the thumbprint (since vSphere 9)
}

// DefaultPort is where authd listens.
const DefaultPort = 902

// Addr is host:port, as dialled and as named in errors.
func (t Ticket) Addr() string {
	port := t.Port
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(port))
}

// String leaves the secret out.
func (t Ticket) String() string { return fmt.Sprintf("ticket for %s at %s", t.Service, t.Addr()) }

// GoString leaves the secret out.
func (t Ticket) GoString() string { return t.String() }

// LogValue leaves the secret out.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ErrUntrusted is a host whose certificate is not the one the ticket names, or a ticket that names none.
var ErrUntrusted = errors.New("the host's certificate is not trusted")

// check compares the certificate of the host with what the ticket says. Chains are not looked at: hosts sign their
// own certificates, and the ticket came over a trusted connection.
func (t Ticket) check(leaf *x509.Certificate) error {
	switch {
	case t.Certificate != "":
		block, _ := pem.Decode([]byte(t.Certificate))
		if block == nil || block.Type != "CERTIFICATE" {
			return fmt.Errorf("%w: the ticket's certificate is not PEM", ErrUntrusted)
		}
		if bytes.Equal(block.Bytes, leaf.Raw) {
			return nil
		}
		want := sha256.Sum256(block.Bytes)
		return untrusted(t, leaf, wire.Thumbprint(want[:]))
	case t.Thumbprint != "":
		want, err := wire.ParseThumbprint(t.Thumbprint)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		if subtle.ConstantTimeCompare(want, digest(leaf, len(want))) == 1 {
			return nil
		}
		return untrusted(t, leaf, wire.Thumbprint(want))
	}
	return fmt.Errorf("%w: the ticket for %s has neither thumbprint nor certificate", ErrUntrusted, t.Addr())
}

func digest(leaf *x509.Certificate, size int) []byte {
	if size == sha1.Size {
		sum := sha1.Sum(leaf.Raw)
		return sum[:]
	}
	sum := sha256.Sum256(leaf.Raw)
	return sum[:]
}

func untrusted(t Ticket, leaf *x509.Certificate, want string) error {
	size := sha256.Size
	if len(want) == 3*sha1.Size-1 {
		size = sha1.Size
	}
	return fmt.Errorf("%w: %s presents %s, vSphere expects %s: either something sits between here and the host, "+
		"or its certificate was renewed and vCenter still has the old one (disconnect and reconnect the host in vCenter)",
		ErrUntrusted, t.Addr(), wire.Thumbprint(digest(leaf, size)), want)
}
