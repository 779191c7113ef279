package nfc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// The way to an NFC server leads through authd, all on one TCP connection:
//
//	TCP ──> greeting (clear) ──> TLS #1 { SESSION, BANNER, THUMBPRINT_SHA2, PROXY } ──┬──> clear   (nbd)
//	                                                                                 └──> TLS #2  (nbdssl)
//	    ──> classic handshake, 264-byte messages ──> frames
//
// TLS #1 is not closed but forgotten, by both sides; TLS #2 starts afresh on the bare connection, not inside.

// line is a connection on which frames can begin.
type line struct {
	net.Conn // carries NFC: raw, or TLS on it
	raw      net.Conn
	sealed   bool
	version  uint32 // the host's protocol
}

// dial walks up to the first frame. The connection has no deadline when it returns.
func (t *Transport) dial(ctx context.Context, k Ticket, random bool) (_ *line, err error) {
	timeout := t.Options.connectTimeout()
	d := net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6,
	}}
	raw, err := d.DialContext(ctx, "tcp", k.Addr())
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to %s: %w; the NFC port of the ESXi host itself (not of vCenter) must be reachable "+
			"from here: check name resolution, routes and firewalls between", k.Addr(), err)
	}
	raw.SetDeadline(time.Now().Add(timeout))
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	l, stage, err := t.walk(ctx, raw, k, random)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %s: %w", k.Addr(), stage, lost(err))
	}
	return l, raw.SetDeadline(time.Time{})
}

// lost makes the end of a connection a [vddk.ErrConnectionLost].
func lost(err error) error {
	var ne net.Error
	switch {
	case errors.Is(err, vddk.ErrConnectionLost):
		return err
	case errors.As(err, &ne) && ne.Timeout():
		return fmt.Errorf("%w: no answer in time", vddk.ErrConnectionLost)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: closed by the host", vddk.ErrConnectionLost)
	case errors.As(err, new(*net.OpError)), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%w: %w", vddk.ErrConnectionLost, err)
	}
	return err
}

// walk is dial after the TCP connection; stage says how far it came.
func (t *Transport) walk(ctx context.Context, raw net.Conn, k Ticket, random bool) (_ *line, stage string, err error) {
	stage = "greeting"
	hello, err := wire.ReadLine(raw)
	if err != nil && !errors.Is(err, wire.ErrLine) {
		return nil, stage, err
	}
	var greeting wire.Greeting
	if err == nil {
		greeting, err = wire.ParseGreeting(hello)
	}
	if err != nil {
		return nil, stage, fmt.Errorf("%w: %w: another service listens there", ErrProtocol, err)
	}
	if stage, err = t.authd(ctx, raw, k, greeting); err != nil {
		return nil, stage, err
	}
	l := &line{Conn: raw, raw: raw}
	if t.Mode == NBDSSL {
		stage = "second TLS"
		c := tls.Client(raw, k.config())
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, stage, err
		}
		l.Conn, l.sealed = c, true
	}
	l.version, err = classic(l, random)
	return l, "handshake", err
}

// config verifies the host by what the ticket says of its certificate, nothing else.
func (k Ticket) config() *tls.Config {
	return &tls.Config{
		// The chain means nothing: VerifyConnection compares the certificate itself.
		InsecureSkipVerify:          true,
		MinVersion:                  tls.VersionTLS12,
		DynamicRecordSizingDisabled: true, // frames are large: full records from the start
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return fmt.Errorf("%w: it presents none", ErrUntrusted)
			}
			return k.check(s.PeerCertificates[0])
		},
	}
}

// authd holds the dialogue inside TLS #1, up to "200 Connect"; stage says how far it came.
func (t *Transport) authd(ctx context.Context, raw net.Conn, k Ticket, g wire.Greeting) (stage string, err error) {
	if strings.ContainsAny(k.SessionID+k.Service, "\r\n") || k.SessionID == "" || k.Service == "" {
		return "ticket", errors.New("the ticket lacks session or service, or has a line break in them")
	}
	c := tls.Client(&wire.RecordConn{Conn: raw}, k.config())
	if err := c.HandshakeContext(ctx); err != nil {
		return "first TLS", err
	}
	say := func(line string) error { _, err := io.WriteString(c, line+"\r\n"); return err }
	ask := func(line string, want int) error {
		if err := say(line); err != nil {
			return err
		}
		reply, err := wire.ReadLine(c)
		if errors.Is(err, wire.ErrLine) {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if err != nil {
			return err
		}
		switch code := wire.Code(reply); {
		case code == want:
			return nil
		case code == 530:
			return fmt.Errorf("%w with 530: it was used before, is too old, or is for another host: %w", errTicket, vddk.ErrPermission)
		case code == 0:
			return fmt.Errorf("%w: its answer has no code", ErrProtocol)
		default:
			return fmt.Errorf("the host answers %d where %d is expected: %w", code, want, vddk.ErrUnsupported)
		}
	}
	// SESSION has no answer: it shows in that of PROXY.
	if err := say("SESSION " + k.SessionID); err != nil {
		return "authd SESSION", err
	}
	if err := ask("BANNER ", 220); err != nil {
		return "authd BANNER", err
	}
	if g.SHA256 {
		if err := ask("THUMBPRINT_SHA2 "+wire.PlainTag, 200); err != nil {
			return "authd THUMBPRINT_SHA2", err
		}
	}
	service := strings.TrimSuffix(k.Service, "ssl")
	if t.Mode == NBDSSL {
		service += "ssl"
	}
	if err := ask("PROXY "+service, 200); err != nil {
		return "authd PROXY " + service, err
	}
	return "", nil
}

// classic is the handshake of [wire.Message]s. Each goes out in a write of its own: a host reads one per TLS record.
func classic(l *line, random bool) (version uint32, err error) {
	send := func(ms ...*wire.Message) error {
		for _, m := range ms {
			if _, err := l.Write(m[:]); err != nil {
				return err
			}
		}
		return nil
	}
	opening := []*wire.Message{wire.NewMessage(wire.FileCopy), wire.NewMessage(wire.Version, wire.Protocol)}
	if random {
		opening = append([]*wire.Message{wire.NewClientRandom(wire.PlainTag)}, opening...)
	}
	if err := send(opening...); err != nil {
		return 0, handshake(err, random)
	}
	// FILEOP_STATUS comes before or after the version went out, by host; nothing but its coming is of interest.
	var m wire.Message
	for m.Type() != wire.Version {
		if err := expect(l, &m, wire.FileOpStatus, wire.Version); err != nil {
			return 0, handshake(err, random)
		}
	}
	if version = m.Arg(0); version < wire.MinProtocol {
		return version, fmt.Errorf("protocol version %d: hosts before vSphere 6.5 are not supported: %w", version, vddk.ErrUnsupported)
	}
	if err := send(wire.NewMessage(wire.ConnectionData, uint32(len(wire.ClientName)), uint32(len(wire.ClientOpID)))); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(l, wire.ClientName+wire.ClientOpID); err != nil {
		return 0, err
	}
	if err := send(wire.NewMessage(wire.Features, wire.AllFeatures), wire.NewMessage(wire.AIOOpen)); err != nil {
		return 0, err
	}
	return version, expect(l, &m, wire.AIOOpen)
}

// handshake marks a refusal that may be due to CLIENTRANDOM.
func handshake(err error, random bool) error {
	if random && (errors.Is(err, vddk.ErrUnsupported) || errors.Is(lost(err), vddk.ErrConnectionLost)) {
		return fmt.Errorf("%w: %w", errRandom, lost(err))
	}
	return err
}

// expect reads one message of one of the types.
func expect(l *line, m *wire.Message, types ...wire.MessageType) error {
	if _, err := io.ReadFull(l, m[:]); err != nil {
		return err
	}
	for _, t := range types {
		if m.Type() == t {
			return nil
		}
	}
	if m.Type() == wire.SessionComplete {
		return fmt.Errorf("the host ended the session: %w", vddk.ErrUnsupported)
	}
	return fmt.Errorf("%w: %s where %s is expected", ErrProtocol, m.Type(), types[len(types)-1])
}
