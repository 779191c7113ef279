package location

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
)

// stallTimeout ends a connection on which nothing moves: a server that vanished without a word. It is restic's
// figure; a fast one would cut off servers that sync a large file.
const stallTimeout = 5 * time.Minute

// transport is what carries HTTP to REST and S3.
func (o opener) transport() (*http.Transport, error) {
	conf, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 30 * time.Second,
		ForceAttemptHTTP2:   true, // a DialContext of one's own turns it off
		DisableCompression:  true, // everything stored is encrypted
		MaxIdleConnsPerHost: 100,  // or connections beyond two would be made anew for each request
		IdleConnTimeout:     90 * time.Second,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if o.l.scheme == "rest" && o.l.host != "" {
				network, address = "unix", o.l.host
			}
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return backend.Conn(stallConn{c}, o.up, o.down), nil
		},
	}, nil
}

// stallConn fails when nothing moves for stallTimeout, in neither direction: while a request is sent, its answer
// is waited for already.
type stallConn struct{ net.Conn }

func (c stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(stallTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// stallPiece is what a connection must carry within stallTimeout to count as moving. Requests come in one piece,
// and a pack may take longer than that on a thin line.
const stallPiece = 256 << 10

func (c stallConn) Write(p []byte) (written int, err error) {
	for {
		if err := c.SetDeadline(time.Now().Add(stallTimeout)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[:min(len(p), stallPiece)])
		written += n
		if p = p[n:]; err != nil || len(p) == 0 {
			return written, err
		}
	}
}

func (o opener) tlsConfig() (*tls.Config, error) {
	conf := &tls.Config{InsecureSkipVerify: o.s.InsecureTLS}
	files := o.s.CACerts
	if text := o.env("RESTIC_CACERT"); text != "" {
		files = append(files[:len(files):len(files)], strings.Split(text, ",")...)
	}
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, backend.Permanent(fmt.Errorf("CA certificate: %w", err))
		}
		if conf.RootCAs == nil {
			conf.RootCAs = x509.NewCertPool()
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, backend.Permanent(fmt.Errorf("CA certificate: %s holds no certificate in PEM form", file))
		}
	}
	if file := o.env("RESTIC_TLS_CLIENT_CERT"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, backend.Permanent(fmt.Errorf("RESTIC_TLS_CLIENT_CERT: %w", err))
		}
		cert, err := tls.X509KeyPair(pem, pem)
		if err != nil {
			return nil, backend.Permanent(fmt.Errorf("RESTIC_TLS_CLIENT_CERT: %s must hold certificate and key in PEM form: %w", file, err))
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

// rcloneURL is what requests to rclone name: the process itself is the server, and the repository is its root.
func rcloneURL() *url.URL { return &url.URL{Scheme: "http", Host: "rclone", Path: "/"} }
