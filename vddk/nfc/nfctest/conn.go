package nfctest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// conn is one connection, from the greeting to the end.
type conn struct {
	Scenario
	server  *Server
	serial  int
	raw     net.Conn
	ctx     context.Context
	cancel  context.CancelFunc
	excused atomic.Bool // its end is the server's doing
	memory  int64       // of its session's buffers, guarded by server.mu
	grant   Grant
}

// helloTimeout bounds how long a client may take until frames begin.
const helloTimeout = 30 * time.Second

// errCut is a connection the scenario cuts.
var errCut = errors.New("cut by the scenario")

// cut ends the connection at once.
func (c *conn) cut() {
	c.cancel()
	c.raw.Close()
}

func (c *conn) event(stage, what string) { c.told(Event{Stage: stage, What: what}) }

func (c *conn) told(e Event) {
	if c.server.cfg.Events != nil {
		e.Conn = c.serial
		c.server.cfg.Events(e)
	}
}

// wait waits for d or the end of the connection.
func (c *conn) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

func (c *conn) serve() {
	defer c.cancel()
	var untidy error
	if ch, service, err := c.hello(); err == nil {
		if err = c.classic(ch); err == nil {
			s := newSession(c, ch)
			untidy = s.run()
		} else {
			c.event("end", fmt.Sprintf("%s: classic handshake: %v", service, err))
		}
	} else {
		c.event("end", err.Error())
	}
	c.raw.Close()
	c.server.forget(c, untidy)
}

// channel is what NFC runs over once authd let go: the TCP connection or a second TLS session on it.
type channel struct {
	net.Conn
	sealed bool
	early  []byte // to be sent together with the answer to PROXY
}

// gather is a connection that can hold writes back, to let several go out in one segment.
type gather struct {
	net.Conn
	hold bool
	buf  bytes.Buffer
}

func (g *gather) Write(p []byte) (int, error) {
	if g.hold {
		return g.buf.Write(p)
	}
	return g.Conn.Write(p)
}

func (g *gather) flush() error {
	g.hold = false
	_, err := g.Conn.Write(g.buf.Bytes())
	return err
}

func (c *conn) greet() error {
	const head = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, " +
		"MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t"
	line := head + ", " + wire.SHA256Token
	switch c.Greeting {
	case Plain:
		line = head
	case Garbage:
		line = "SSH-2.0-OpenSSH_9.9"
	case Overlong:
		line = head + strings.Repeat(", more supported", 100)
	case Silent:
		io.Copy(io.Discard, c.raw) // until the client has had enough
		return errors.New("silent")
	}
	_, err := io.WriteString(c.raw, line+"\r\n")
	return err
}

// hello is everything before NFC: greeting, first TLS session, dialogue, second TLS session.
func (c *conn) hello() (*channel, string, error) {
	if c.Greeting != Silent {
		c.raw.SetDeadline(time.Now().Add(helloTimeout))
	}
	if err := c.greet(); err != nil {
		return nil, "", err
	}
	out := &gather{Conn: &wire.RecordConn{Conn: c.raw}}
	first := tls.Server(out, c.tls(0))
	if err := first.HandshakeContext(c.ctx); err != nil {
		return nil, "", fmt.Errorf("first TLS: %w", err)
	}
	service, early, err := c.dialogue(first, out)
	if err != nil {
		return nil, "", err
	}
	ch := &channel{Conn: c.raw, early: early, sealed: strings.HasSuffix(service, "ssl")}
	if ch.sealed {
		cert := 0
		if c.OtherCert {
			cert = 1
		}
		second := tls.Server(c.raw, c.tls(cert))
		if err := second.HandshakeContext(c.ctx); err != nil {
			return nil, "", fmt.Errorf("second TLS: %w", err)
		}
		ch.Conn = second
	}
	return ch, service, nil
}

func (c *conn) tls(cert int) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c.server.certs[cert]},
		MinVersion:   max(c.MinTLS, tls.VersionTLS12), MaxVersion: c.MaxTLS,
		DynamicRecordSizingDisabled: true,
	}
}

// dialogue answers commands until PROXY.
func (c *conn) dialogue(first *tls.Conn, out *gather) (service string, early []byte, err error) {
	say := func(format string, args ...any) error {
		_, err := fmt.Fprintf(first, format+"\r\n", args...)
		return err
	}
	admitted := false
	for {
		line, err := wire.ReadLine(first)
		if err != nil {
			return "", nil, fmt.Errorf("dialogue: %w", err)
		}
		verb, arg, _ := strings.Cut(line, " ")
		shown := line
		if verb == "SESSION" {
			shown = "SESSION ..."
		}
		c.event("authd", shown)
		switch {
		case verb == "SESSION":
			c.grant, admitted = c.server.redeem(arg)
		case verb == "BANNER":
			err = say("220 VMware Authentication Daemon Version 1.10")
		case verb == "THUMBPRINT_SHA2" && c.Greeting == Modern:
			if arg == "" || strings.Contains(arg, ":") {
				err = say("501 Invalid argument")
				break
			}
			sum := sha256.Sum256(c.server.certs[0].Certificate[0])
			err = say("200 %s", wire.Thumbprint(sum[:]))
		case verb != "PROXY" || !admitted:
			if err := say("530 Please login with USER and PASS."); err != nil {
				return "", nil, err
			}
			if verb == "PROXY" {
				return "", nil, errors.New("PROXY without a valid ticket")
			}
		case c.Proxy == "close":
			return "", nil, errCut
		case c.Proxy != "":
			if err := say("%s", c.Proxy); err != nil {
				return "", nil, err
			}
			return "", nil, errors.New("PROXY refused")
		default:
			if s := c.server.cfg.Service; arg != s && arg != s+"ssl" {
				if err := say("501 No such service"); err != nil {
					return "", nil, err
				}
				return "", nil, fmt.Errorf("PROXY %s", arg)
			}
			out.hold = true
			if err := say("200 Connect %s", strings.Replace(arg, "vpxa-nfc", "ha-nfc", 1)); err != nil {
				return "", nil, err
			}
			if c.EarlyData && !strings.HasSuffix(arg, "ssl") {
				early = wire.NewFileOpStatus()[:]
				out.buf.Write(early)
			}
			return arg, early, out.flush()
		}
		if err != nil {
			return "", nil, err
		}
	}
}

// read fills p with one message; over TLS, it must be one record: real hosts lose the rest.
func (c *conn) readMessage(ch *channel, p []byte) error {
	if !ch.sealed {
		_, err := io.ReadFull(ch, p)
		return err
	}
	var record [16 << 10]byte
	n, err := ch.Read(record[:])
	if err != nil {
		return err
	}
	if n != len(p) {
		return fmt.Errorf("TLS record of %d bytes holds more or less than one message of %d", n, len(p))
	}
	copy(p, record[:n])
	return nil
}

// classic is the handshake of 264-byte messages.
func (c *conn) classic(ch *channel) error {
	send := func(m *wire.Message) error { _, err := ch.Write(m[:]); return err }
	acked := ch.early != nil
	for {
		var m wire.Message
		if err := c.readMessage(ch, m[:]); err != nil {
			return err
		}
		t := m.Type()
		c.event("classic", t.String())
		if uint32(t) == c.RefuseAt || t == wire.ClientRandom && c.NoRandom {
			return errors.Join(errCut, send(wire.NewMessage(wire.SessionComplete)))
		}
		if uint32(t) == c.CutAt {
			return errCut
		}
		var err error
		switch t {
		case wire.ClientRandom, wire.Features:
		case wire.FileCopy:
			if !c.AckLate && !acked {
				acked = true
				err = send(wire.NewFileOpStatus())
			}
		case wire.Version:
			if !acked {
				acked = true
				err = send(wire.NewFileOpStatus())
			}
			err = errors.Join(err, send(wire.NewMessage(wire.Version, c.version())))
		case wire.ConnectionData:
			a, b := m.Arg(0), m.Arg(1)
			if a > wire.MaxConnString || b > wire.MaxConnString {
				return fmt.Errorf("connection data of %d and %d bytes", a, b)
			}
			if a+b > 0 {
				err = c.readMessage(ch, make([]byte, a+b))
			}
		case wire.AIOOpen:
			if c.version() < wire.MinProtocol {
				return errors.Join(errCut, send(wire.NewMessage(wire.SessionComplete)))
			}
			return send(wire.NewMessage(wire.AIOOpen))
		case wire.SessionComplete:
			return errors.New("the client left")
		default:
			return errors.Join(fmt.Errorf("unexpected %s", t), send(wire.NewMessage(wire.SessionComplete)))
		}
		if err != nil {
			return err
		}
	}
}
