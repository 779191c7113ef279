package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
)

// dialTimeout bounds one TCP connection attempt plus its TLS handshake.
const dialTimeout = 30 * time.Second

// idleConnections kept per host: Go's default of 2 makes parallel calls reconnect all the time.
const idleConnections = 32

// address is the server's URL without user information, and the user information apart.
func (cfg Config) address() (*url.URL, *url.Userinfo, error) {
	bad := func(why string) error {
		return &Error{Kind: ErrInvalid, Summary: "the vSphere URL is not usable: " + why,
			Remedy: "give a host name or a URL like https://vcenter.example/sdk"}
	}
	if strings.TrimSpace(cfg.URL) == "" {
		return nil, nil, bad("it is empty")
	}
	u, err := soap.ParseURL(strings.TrimSpace(cfg.URL))
	if err != nil {
		return nil, nil, bad("it cannot be parsed") // url.Error would quote it, with the password in it
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, nil, bad("it needs a host and the scheme https")
	}
	user := u.User
	u.User = nil
	if cfg.Username != "" {
		user = url.UserPassword(cfg.Username, cfg.Password)
	} else if p, _ := user.Password(); p == "" && cfg.Password != "" {
		user = url.UserPassword(user.Username(), cfg.Password)
	}
	if user.Username() == "" {
		return nil, nil, &Error{Kind: ErrInvalid, Object: u.Host, Summary: "no vSphere user name is given",
			Remedy: "set the user name, for example backup@vsphere.local"}
	}
	return u, user, nil
}

// tlsDialer makes TLS connections to any host vSphere names, with the trust that Config states. govmomi's own dialer
// ignores the context and has no deadline for the handshake.
type tlsDialer struct {
	server   string // host:port the thumbprint belongs to
	pin      []byte // SHA-1 or SHA-256; nil: none
	roots    *x509.CertPool
	insecure bool
	seen     atomic.Pointer[thumbprints] // of what the server presented last
}

// thumbprints are the hashes of a certificate, in hexadecimal with colons.
type thumbprints struct{ sha1, sha256 string }

func newTLSDialer(cfg Config, u *url.URL) (*tlsDialer, error) {
	d := &tlsDialer{server: hostPort(u), insecure: cfg.Insecure}
	if cfg.Thumbprint != "" {
		pin, err := parseThumbprint(cfg.Thumbprint)
		if err != nil {
			return nil, err
		}
		d.pin = pin
	}
	if cfg.CACerts != "" {
		pool, err := loadRoots(cfg.CACerts)
		if err != nil {
			return nil, err
		}
		d.roots = pool
	}
	return d, nil
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func parseThumbprint(s string) ([]byte, error) {
	s = strings.TrimSpace(s)
	for _, prefix := range []string{"SHA256:", "SHA-256:", "SHA1:", "SHA-1:"} {
		if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
			s = s[len(prefix):]
		}
	}
	b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(s))
	if err != nil || len(b) != sha1.Size && len(b) != sha256.Size {
		return nil, &Error{Kind: ErrInvalid, Summary: fmt.Sprintf("thumbprint %q is not one", s),
			Remedy: "give the SHA-256 (64 digits) or SHA-1 (40 digits) of the certificate in hexadecimal"}
	}
	return b, nil
}

func loadRoots(s string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if strings.Contains(s, "-----BEGIN") {
		if !pool.AppendCertsFromPEM([]byte(s)) {
			return nil, &Error{Kind: ErrInvalid, Summary: "the CA certificates hold no usable certificate", Remedy: "give PEM text or PEM files"}
		}
		return pool, nil
	}
	for _, name := range filepath.SplitList(s) {
		pem, err := os.ReadFile(name)
		if err != nil {
			return nil, &Error{Kind: ErrInvalid, Summary: "a CA certificate file cannot be read", Remedy: "check the path", Err: err}
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, &Error{Kind: ErrInvalid, Object: name, Summary: name + " holds no PEM certificate", Remedy: "give a PEM file"}
		}
	}
	return pool, nil
}

// dial is the DialTLSContext of the HTTP transport.
func (d *tlsDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, d.config(host, addr))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// config leaves the decision about a certificate to verify: by pin, by roots, or not at all.
func (d *tlsDialer) config(host, addr string) *tls.Config {
	return &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return d.verify(addr, host, cs) },
	}
}

func (d *tlsDialer) verify(addr, host string, cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	s1, s256 := sha1.Sum(leaf.Raw), sha256.Sum256(leaf.Raw)
	shown := colonHex(s256[:])
	if addr == d.server {
		d.seen.Store(&thumbprints{sha1: colonHex(s1[:]), sha256: shown})
		if d.pin != nil {
			if subtle.ConstantTimeCompare(d.pin, s1[:]) == 1 || subtle.ConstantTimeCompare(d.pin, s256[:]) == 1 {
				return nil
			}
			return &Error{Kind: ErrCertificate, Object: addr, Presented: shown,
				Summary: fmt.Sprintf("the certificate of %s does not have the expected thumbprint: presented SHA-256 %s, SHA-1 %s", addr, shown, colonHex(s1[:])),
				Remedy:  "find out why the certificate changed; if it was renewed on purpose, configure the new thumbprint"}
		}
	}
	if d.insecure {
		return nil
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: d.roots, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return &Error{Kind: ErrCertificate, Object: addr, Presented: shown, Err: err,
			Summary: fmt.Sprintf("the certificate of %s is not trusted: presented SHA-256 %s", addr, shown),
			Remedy:  "compare the thumbprint with the server's own and configure it, or configure the CA certificate (vCenter offers it at https://<vcenter>/certs/download.zip)"}
	}
	return nil
}

func colonHex(b []byte) string {
	var s strings.Builder
	for i, x := range b {
		if i > 0 {
			s.WriteByte(':')
		}
		fmt.Fprintf(&s, "%02X", x)
	}
	return s.String()
}

// dialFailed reports whether err happened before a byte of a request was sent, so that any call may be repeated.
func dialFailed(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return true
	}
	var dns *net.DNSError
	return errors.As(err, &dns)
}
