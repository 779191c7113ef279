package location_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
)

const password = "pass/w@rd-of-the-test"

// htpasswd lets "keeper" in.
func htpasswd(t testing.TB) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(name, fmt.Appendf(nil, "keeper:%s\n", hash), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// certificate makes a certificate for 127.0.0.1 and its key, each a PEM file.
func certificate(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vmkeep test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func withEnv(p peers.Peer, more map[string]string) peers.Peer {
	env := maps.Clone(more)
	maps.Copy(env, p.Env)
	p.Env = env
	return p
}

// places are all ways to name a store, with all ways to prove who one is.
var places = map[string]func(testing.TB) peers.Peer{
	"local": peers.Local,
	"rest": func(t testing.TB) peers.Peer {
		return withEnv(peers.RestServer(t, "--htpasswd-file", htpasswd(t)), map[string]string{"RESTIC_REST_USERNAME": "keeper", "RESTIC_REST_PASSWORD": password})
	},
	"rest with password in the URL": func(t testing.TB) peers.Peer {
		p := peers.RestServer(t, "--htpasswd-file", htpasswd(t))
		p.Location = strings.Replace(p.Location, "://", "://keeper:pass%2Fw%40rd-of-the-test@", 1)
		return p
	},
	"rest over TLS": func(t testing.TB) peers.Peer {
		cert, key := certificate(t)
		return withEnv(peers.RestServer(t, "--tls", "--tls-cert", cert, "--tls-key", key), map[string]string{"RESTIC_CACERT": cert})
	},
	"rest on a socket": func(t testing.TB) peers.Peer {
		dir, err := os.MkdirTemp("", "rest") // t.TempDir is too long for a socket's name
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return peers.RestServer(t, "--listen", "unix:"+filepath.Join(dir, "s"))
	},
	"s3": peers.S3,
	"s3 with a shared credentials file": func(t testing.TB) peers.Peer {
		name := filepath.Join(t.TempDir(), "credentials")
		text := "[other]\naws_access_key_id = " + peers.AccessKey + "\naws_secret_access_key = " + peers.SecretKey + "\n"
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := peers.S3(t)
		p.Env = map[string]string{"AWS_SHARED_CREDENTIALS_FILE": name, "AWS_PROFILE": "other"}
		return p
	},
	"sftp": peers.SFTP,
	"rclone": func(t testing.TB) peers.Peer {
		rclone := peers.System(t, "rclone", "rclone")
		return peers.Peer{
			Location: "rclone::local:" + filepath.Join(t.TempDir(), "repo"),
			Options:  map[string]string{"rclone.program": rclone},
		}
	},
}

func settings(p peers.Peer) location.Settings {
	return location.Settings{Env: p.Lookup, Options: p.Options, Retry: backend.Policy{Budget: time.Nanosecond, Initial: time.Millisecond}}
}

func parse(t *testing.T, s string) location.Location {
	t.Helper()
	l, err := location.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func read(t *testing.T, b backend.Backend, h backend.Handle) []byte {
	t.Helper()
	var data []byte
	err := b.Load(t.Context(), h, 0, 0, func(r io.Reader) (err error) {
		data, err = io.ReadAll(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpensWhatResticMade(t *testing.T) {
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := place(t)
			restic019 := peers.Restic(t, p)
			restic019.Run("init")
			b, err := location.Open(t.Context(), parse(t, p.Location), settings(p))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if config := read(t, b, backend.Handle{Type: restic.ConfigFile}); len(config) < 100 {
				t.Errorf("config has %d bytes", len(config))
			}
			keys := 0
			err = b.List(t.Context(), restic.KeyFile, func(info backend.FileInfo) error {
				keys++
				if data := read(t, b, backend.Handle{Type: restic.KeyFile, Name: info.Name}); restic.Hash(data).String() != info.Name {
					t.Errorf("key %s holds other bytes", info.Name)
				}
				return nil
			})
			if err != nil || keys != 1 {
				t.Errorf("%d keys listed, %v", keys, err)
			}
			// restic sees what we save, and the other way round.
			data := backendtest.Bytes(1000)
			h := backendtest.HandleOf(restic.PackFile, data)
			if err := b.Save(t.Context(), h, data); err != nil {
				t.Fatal(err)
			}
			if list := restic019.Run("list", "packs"); strings.TrimSpace(list) != h.Name {
				t.Errorf("restic lists %q, want %s", list, h.Name)
			}
			if got := b.Location(); strings.Contains(got, password) || strings.Contains(got, "pass%2F") {
				t.Errorf("Location() shows the password: %s", got)
			}
		})
	}
}

func TestCreatesWhereNothingIs(t *testing.T) {
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := place(t)
			l := parse(t, p.Location)
			// Stores that can tell say at once that there is nothing; with the others loading config does.
			b, err := location.Open(t.Context(), l, settings(p))
			if err == nil {
				_, err = b.Stat(t.Context(), backend.Handle{Type: restic.ConfigFile})
				b.Close()
			}
			if !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("Open of nothing: %v", err)
			}
			data := backendtest.Bytes(200)
			for range 2 { // the second time it exists
				if b, err = location.Create(t.Context(), l, settings(p)); err != nil {
					t.Fatal(err)
				}
				if err := b.Save(t.Context(), backend.Handle{Type: restic.ConfigFile}, data); err != nil && !errors.Is(err, backend.ErrExist) {
					t.Error(err)
				}
				if got := read(t, b, backend.Handle{Type: restic.ConfigFile}); !bytes.Equal(got, data) {
					t.Error("config is not what was saved first")
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	const wrong = "wr0ng-s3cret"
	rest, s3 := peers.RestServer(t, "--htpasswd-file", htpasswd(t)), peers.S3(t)
	for name, p := range map[string]peers.Peer{
		"rest":        withEnv(rest, map[string]string{"RESTIC_REST_USERNAME": "keeper", "RESTIC_REST_PASSWORD": wrong}),
		"rest in URL": {Location: strings.Replace(rest.Location, "://", "://keeper:"+wrong+"@", 1)},
		"rest gone":   {Location: "rest:http://keeper:" + wrong + "@127.0.0.1:1/"},
		"s3":          {Location: s3.Location, Env: map[string]string{"AWS_ACCESS_KEY_ID": peers.AccessKey, "AWS_SECRET_ACCESS_KEY": wrong}},
		"s3 gone":     {Location: "s3:http://127.0.0.1:1/bucket", Env: map[string]string{"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": wrong}},
	} {
		t.Run(name, func(t *testing.T) {
			var told []string
			s := settings(p)
			s.Retry.Notify = func(what string, err error, _ time.Duration) { told = append(told, what, err.Error()) }
			for _, open := range []func() (backend.Backend, error){
				func() (backend.Backend, error) { return location.Open(t.Context(), parse(t, p.Location), s) },
				func() (backend.Backend, error) { return location.Create(t.Context(), parse(t, p.Location), s) },
			} {
				b, err := open()
				if err == nil {
					told = append(told, b.Location())
					data := backendtest.Bytes(100)
					h := backendtest.HandleOf(restic.PackFile, data)
					_, statErr := b.Stat(t.Context(), h)
					err = errors.Join(statErr, b.Save(t.Context(), h, data), b.Remove(t.Context(), h),
						b.Load(t.Context(), h, 0, 0, func(io.Reader) error { return nil }),
						b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { return nil }), b.Close())
				}
				if err == nil {
					t.Error("a wrong secret let us in")
					continue
				}
				told = append(told, fmt.Sprintf("%v %+v %#v", err, err, err))
			}
			for _, text := range told {
				if strings.Contains(text, wrong) {
					t.Errorf("the secret shows: %s", text)
				}
			}
		})
	}
}

// Child processes are ssh and rclone; neither is given a secret as an argument.
func TestProcessListShowsNoSecret(t *testing.T) {
	p := places["rclone"](t)
	p.Env = map[string]string{"RESTIC_REST_PASSWORD": password, "AWS_SECRET_ACCESS_KEY": password}
	b, err := location.Create(t.Context(), parse(t, p.Location), settings(p))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	found := false
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(entries) == 0 {
		t.Fatal("no process list", err)
	}
	for _, name := range entries {
		line, err := os.ReadFile(name)
		if err != nil {
			continue // ended since
		}
		found = found || bytes.Contains(line, []byte("serve\x00restic\x00--stdio"))
		if bytes.Contains(line, []byte(password)) {
			t.Errorf("%s shows the password: %q", name, line)
		}
	}
	if !found {
		t.Error("rclone does not run; nothing was tested")
	}
}

func TestBadSettingsAreExplained(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	env := func(name, value string) func(string) (string, bool) {
		return func(n string) (string, bool) {
			if n == "AWS_EC2_METADATA_DISABLED" {
				return "true", true
			}
			return value, n == name
		}
	}
	noPEM := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(noPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		location string
		settings location.Settings
		text     string
	}{
		"unknown option":  {"/x", location.Settings{Options: map[string]string{"local.connection": "1"}}, "local.connections"},
		"option":          {"/x", location.Settings{Options: map[string]string{"local.connections": "none"}}, "at least 1"},
		"quote":           {"sftp:h:/p", location.Settings{Options: map[string]string{"sftp.args": "-o 'x"}}, "left open"},
		"both":            {"sftp:h:/p", location.Settings{Options: map[string]string{"sftp.args": "x", "sftp.command": "y"}}, "exclude"},
		"CA missing":      {"rest:https://h/", location.Settings{CACerts: []string{"/no/such/file"}}, "/no/such/file"},
		"CA variable":     {"rest:https://h/", location.Settings{Env: env("RESTIC_CACERT", noPEM)}, "no certificate"},
		"client cert":     {"rest:https://h/", location.Settings{Env: env("RESTIC_TLS_CLIENT_CERT", noPEM)}, "certificate and key"},
		"half a key":      {"s3:h/b", location.Settings{Env: env("AWS_ACCESS_KEY_ID", "x")}, "both are needed"},
		"no credentials":  {"s3:h/b", location.Settings{Env: env("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")}, "AWS_PROFILE"},
		"no rclone":       {"rclone:r:p", location.Settings{Options: map[string]string{"rclone.program": "/no/such/rclone"}}, "install it"},
		"not a bool":      {"s3:h/b", location.Settings{Options: map[string]string{"s3.unsafe-anonymous-auth": "maybe"}}, "true or false"},
		"archive storage": {"s3:h/b", location.Settings{Env: env("", ""), Options: map[string]string{"s3.unsafe-anonymous-auth": "true", "s3.storage-class": "GLACIER"}}, "GLACIER_IR"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.settings.Env == nil {
				test.settings.Env = none
			}
			_, err := location.Create(t.Context(), parse(t, test.location), test.settings)
			if !errors.Is(err, backend.ErrPermanent) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v; want a word about %q", err, test.text)
			}
		})
	}
}

// The server demands a certificate that an authority signed which it knows; ours signs itself.
func TestClientCertificateIsPresented(t *testing.T) {
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool, own := x509.NewCertPool(), filepath.Join(t.TempDir(), "client.pem")
	var both []byte
	for _, name := range []string{cert, key} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	pool.AppendCertsFromPEM(both)
	if err := os.WriteFile(own, both, 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains about the client without a certificate
	server.StartTLS()
	defer server.Close()
	for _, env := range []map[string]string{{"RESTIC_CACERT": cert}, {"RESTIC_CACERT": cert, "RESTIC_TLS_CLIENT_CERT": own}} {
		_, with := env["RESTIC_TLS_CLIENT_CERT"]
		b, err := location.Create(t.Context(), parse(t, "rest:"+server.URL), settings(peers.Peer{Env: env}))
		if (err == nil) != with {
			t.Errorf("with a certificate %v: %v", with, err)
		}
		if err == nil {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestRatesHoldAndOperationsAreObserved(t *testing.T) {
	for name, place := range map[string]func(testing.TB) peers.Peer{"local": peers.Local, "rest": places["rest"], "s3": peers.S3, "sftp": peers.SFTP, "rclone": places["rclone"]} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := place(t)
			var mu sync.Mutex
			bytesOf := map[string]int64{}
			s := settings(p)
			s.Upload, s.Download = 400, 800 // KiB/s
			s.Observe = func(c backend.Call) {
				mu.Lock()
				defer mu.Unlock()
				bytesOf[c.Verb] += c.Bytes
			}
			b, err := location.Create(t.Context(), parse(t, p.Location), s)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			data := backendtest.Bytes(400 << 10)
			h := backendtest.HandleOf(restic.PackFile, data)
			start := time.Now()
			if err := b.Save(t.Context(), h, data); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < 900*time.Millisecond {
				t.Errorf("400 KiB at 400 KiB/s took %v", took)
			}
			start = time.Now()
			if got := read(t, b, h); !bytes.Equal(got, data) {
				t.Error("other bytes came back")
			}
			if took := time.Since(start); took < 450*time.Millisecond {
				t.Errorf("400 KiB at 800 KiB/s took %v", took)
			}
			mu.Lock()
			defer mu.Unlock()
			if bytesOf["save"] != int64(len(data)) || bytesOf["load"] != int64(len(data)) {
				t.Errorf("observed %v", bytesOf)
			}
		})
	}
}

func TestUntrustedServerIsRefusedWithTheRemedy(t *testing.T) {
	p := places["rest over TLS"](t)
	_, err := location.Create(t.Context(), parse(t, p.Location), location.Settings{Env: func(string) (string, bool) { return "", false }})
	if !errors.Is(err, backend.ErrPermanent) || !strings.Contains(err.Error(), "RESTIC_CACERT") {
		t.Errorf("Create: %v", err)
	}
	b, err := location.Create(t.Context(), parse(t, p.Location), location.Settings{InsecureTLS: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
