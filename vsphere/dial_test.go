package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// serverCert fetches the certificate of the lab in PEM.
func (w *world) serverCert() []byte {
	w.Helper()
	conn, err := tls.Dial("tcp", w.lab.URL().Host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Raw
}

func TestDialTrust(t *testing.T) {
	w := start(t, lab.Options{})
	der := w.serverCert()
	s1 := sha1.Sum(der)
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	file := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(file, bundle, 0o600))
	wrong := strings.Repeat("AB:", 31) + "AB"
	for _, c := range []struct {
		name string
		cfg  Config
		err  error
		says string
	}{
		{"SHA-256", Config{Thumbprint: w.lab.Thumbprint()}, nil, ""},
		{"SHA-256 without colons", Config{Thumbprint: strings.ToLower(strings.ReplaceAll(w.lab.Thumbprint(), ":", ""))}, nil, ""},
		{"SHA-1", Config{Thumbprint: colonHex(s1[:])}, nil, ""},
		{"PEM text", Config{CACerts: string(bundle)}, nil, ""},
		{"PEM file", Config{CACerts: file}, nil, ""},
		{"insecure", Config{Insecure: true}, nil, ""},
		{"wrong thumbprint", Config{Thumbprint: wrong}, ErrCertificate, w.lab.Thumbprint()},
		{"wrong thumbprint, insecure", Config{Thumbprint: wrong, Insecure: true}, ErrCertificate, w.lab.Thumbprint()},
		{"untrusted", Config{}, ErrCertificate, w.lab.Thumbprint()},
		{"no thumbprint", Config{Thumbprint: "abc"}, ErrInvalid, "abc"},
		{"no PEM", Config{CACerts: "-----BEGIN nonsense"}, ErrInvalid, ""},
		{"no file", Config{CACerts: file + "x"}, ErrInvalid, "ca.pemx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := w.lab.URL()
			c.cfg.Username, c.cfg.Password = u.User.Username(), password
			u.User = nil
			c.cfg.URL = u.String()
			client, err := Dial(w.ctx, c.cfg)
			if err == nil {
				client.Close()
			}
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil {
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Remedy == "" {
				t.Errorf("no remedy: %v", err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %s", err, c.says)
			}
			if errors.Is(err, ErrCertificate) && e.Presented != w.lab.Thumbprint() {
				t.Errorf("presented %q", e.Presented)
			}
		})
	}
}

func TestDialFailures(t *testing.T) {
	w := start(t, lab.Options{})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>hello</html>") }))
	defer web.Close()
	missing := httptest.NewTLSServer(http.NotFoundHandler())
	defer missing.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	busy := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "starting", http.StatusServiceUnavailable) }))
	defer busy.Close()
	user := w.lab.URL().User.Username()
	for _, c := range []struct {
		name string
		cfg  Config
		err  error
	}{
		{"empty", Config{Username: user}, ErrInvalid},
		{"no scheme we know", Config{URL: "ftp://x", Username: user}, ErrInvalid},
		{"not a URL", Config{URL: "https://u:" + password + "@%zz/", Username: user}, ErrInvalid},
		{"no user", Config{URL: "https://127.0.0.1"}, ErrInvalid},
		{"nobody listens", Config{URL: closed.Addr().String(), Username: user, Insecure: true}, ErrUnreachable},
		{"no such host", Config{URL: "https://no-such-host.invalid/", Username: user, Insecure: true}, ErrUnreachable},
		{"says nothing", Config{URL: silent.Addr().String(), Username: user, Insecure: true}, ErrUnreachable},
		{"a web server", Config{URL: web.URL, Username: user, Insecure: true}, ErrNotVSphere},
		{"a web server without /sdk", Config{URL: missing.URL, Username: user, Insecure: true}, ErrNotVSphere},
		{"http on https", Config{URL: "https://" + plain.Listener.Addr().String(), Username: user, Insecure: true}, ErrNotVSphere},
		{"starting", Config{URL: busy.URL, Username: user, Insecure: true}, ErrUnreachable},
		{"wrong password", Config{URL: w.lab.URL().Host, Username: user, Password: password + "x", Insecure: true}, ErrLogin},
		{"wrong user", Config{URL: w.lab.URL().Host, Username: "nobody", Insecure: true}, ErrLogin},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
			defer cancel()
			if c.name == "says nothing" {
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			if c.cfg.Password == "" {
				c.cfg.Password = password
			}
			client, err := Dial(ctx, c.cfg)
			if err == nil {
				client.Close()
			}
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			var e *Error
			if !errors.As(err, &e) || e.Remedy == "" {
				t.Errorf("no remedy: %v", err)
			}
			if strings.Contains(err.Error(), password) {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
	if n := w.lab.Sessions(); n != 1 {
		t.Errorf("%d sessions, want the test's own", n)
	}
}

func TestDialTakesUserFromURL(t *testing.T) {
	w := start(t, lab.Options{})
	c, err := Dial(w.ctx, Config{URL: w.lab.URL().String(), Insecure: true})
	must(t, err)
	defer c.Close()
	a := c.About()
	if !a.VCenter || a.InstanceUUID == "" || a.Thumbprint != w.lab.Thumbprint() || !strings.HasPrefix(a.Product, "VMware vCenter") || strings.Contains(a.URL, password) {
		t.Errorf("%+v", a)
	}
}

func TestBareHost(t *testing.T) {
	w := start(t, lab.Options{ESX: true, Machines: []lab.Machine{{Name: "web", Tracking: true}}})
	if a := w.c.About(); a.VCenter || a.InstanceUUID == "" {
		t.Errorf("%+v", a)
	}
	v := w.find("web")
	if m := v.Machine(); m.Cluster != "" || m.Host == "" || m.Tags != nil {
		t.Errorf("%+v", m)
	}
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		k, err := v.ReadTicket(ctx, s.Disks()[0].Key)
		if k.Service != "nfc" || k.Host == "" {
			t.Errorf("ticket %v", k)
		}
		return err
	})
	must(t, err)
	w.clean("web")
	_, err = w.c.Machines(w.ctx, Selection{Tags: []string{"gold"}})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("tags of a bare host: %v", err)
	}
	_, err = v.WithRelocationDisabled(w.ctx, nil, func(context.Context) error { return nil })
	must(t, err)
}
