package nfctest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Config is what a server is started with.
type Config struct {
	Store   Store
	Listen  string // address, empty: a free port of 127.0.0.1
	Service string // named in tickets, empty: "vpxa-nfc"
	// Events, if not nil, is told everything that happens, from many goroutines. No event holds a secret.
	Events func(Event)
}

// Event is one step of one connection.
type Event struct {
	Conn  int    // counts connections from 1
	Stage string // authd, tls, classic, aio, end
	What  string // for example "PROXY vpxa-nfcssl", "CLIENTRANDOM", "IO read"
	ID    uint32 // of the operation
	Len   int    // bytes
}

func (e Event) String() string {
	return fmt.Sprintf("conn %d %s: %s id %d len %d", e.Conn, e.Stage, e.What, e.ID, e.Len)
}

// Stats counts what a server did since it was started.
type Stats struct {
	Connections, Refused               int64 // accepted; turned away by the limit
	Sessions, Files                    int64 // opened
	OpenFiles, OpenConnections, Memory int64 // open now; buffers of sessions, bytes
	Reads, Writes, Fragments           int64 // operations; fragments of both
	ReadBytes, WireBytes, WrittenBytes int64 // of sector data, before compression; as sent; written
	MaxInFlight                        int64 // reads of one connection waiting for an answer
}

// Server is a running double.
type Server struct {
	cfg    Config
	ln     net.Listener
	certs  [2]tls.Certificate
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu       sync.Mutex
	scenario Scenario
	reads    int // since the scenario was set
	drops    int
	tickets  map[string]Grant
	conns    map[*conn]struct{}
	serial   int
	memory   int64
	untidy   []error // connections that ended without farewell
	idle     chan struct{}
	wg       sync.WaitGroup

	connections, refused, sessions, files, openFiles                       atomic.Int64
	readOps, writes, fragments, readBytes, wireBytes, written, maxInFlight atomic.Int64
}

// Start starts a server; Close ends it.
func Start(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Service == "" {
		cfg.Service = "vpxa-nfc"
	}
	s := &Server{cfg: cfg, tickets: map[string]Grant{}, conns: map[*conn]struct{}{}, idle: make(chan struct{})}
	for i := range s.certs {
		c, err := newCert()
		if err != nil {
			return nil, err
		}
		s.certs[i] = c
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("start NFC server: %w", err)
	}
	s.ln = ln
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

func newCert() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "nfctest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// Addr is where the server listens.
func (s *Server) Addr() *net.TCPAddr { return s.ln.Addr().(*net.TCPAddr) }

// Grant issues a ticket, good for one connection, with the SHA-1 thumbprint as vSphere has it.
func (s *Server) Grant(g Grant) nfc.Ticket {
	id := rand.Text()
	s.mu.Lock()
	s.tickets[id] = g
	s.mu.Unlock()
	sum := sha1.Sum(s.certs[0].Certificate[0])
	return nfc.Ticket{
		Host: s.Addr().IP.String(), Port: s.Addr().Port, Service: s.cfg.Service, SessionID: id,
		Thumbprint: wire.Thumbprint(sum[:]),
	}
}

// Thumbprint256 is the SHA-256 thumbprint of the server's certificate.
func (s *Server) Thumbprint256() string {
	sum := sha256.Sum256(s.certs[0].Certificate[0])
	return wire.Thumbprint(sum[:])
}

// PEM is the server's certificate.
func (s *Server) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certs[0].Certificate[0]}))
}

// SetScenario changes how connections accepted from now on are served, and counts reads anew.
func (s *Server) SetScenario(sc Scenario) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scenario, s.reads, s.drops = sc, 0, 0
}

// CutAll cuts every connection there is. Quiet does not count these as left untidily.
func (s *Server) CutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.excused.Store(true)
		c.cut()
	}
}

// Stats tells what happened so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open, memory := int64(len(s.conns)), s.memory
	s.mu.Unlock()
	return Stats{
		Connections: s.connections.Load(), Refused: s.refused.Load(), Sessions: s.sessions.Load(), Files: s.files.Load(),
		OpenFiles: s.openFiles.Load(), OpenConnections: open, Memory: memory,
		Reads: s.readOps.Load(), Writes: s.writes.Load(), Fragments: s.fragments.Load(),
		ReadBytes: s.readBytes.Load(), WireBytes: s.wireBytes.Load(), WrittenBytes: s.written.Load(),
		MaxInFlight: s.maxInFlight.Load(),
	}
}

// Quiet waits until no connection is left and tells how they ended: nil when every file was closed and every client
// said farewell, of those connections that came so far as to be told "200 Connect" since the last call of Quiet.
func (s *Server) Quiet(ctx context.Context) error {
	for {
		s.mu.Lock()
		n, idle := len(s.conns), s.idle
		if n == 0 {
			err := errors.Join(s.untidy...)
			s.untidy = nil
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return fmt.Errorf("%d connections are still open: %w", n, context.Cause(ctx))
		}
	}
}

// Close cuts all connections and waits until nothing of the server is left.
func (s *Server) Close() error {
	s.cancel()
	err := s.ln.Close()
	s.CutAll()
	s.wg.Wait()
	return err
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		raw, err := s.ln.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			select { // out of descriptors: others will be closed
			case <-s.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		s.mu.Lock()
		sc := s.scenario
		if s.ctx.Err() != nil || sc.Connections > 0 && len(s.conns) >= sc.Connections {
			s.mu.Unlock()
			s.refused.Add(1)
			raw.Close()
			continue
		}
		s.serial++
		ctx, cancel := context.WithCancel(s.ctx)
		c := &conn{server: s, Scenario: sc, serial: s.serial, raw: raw, ctx: ctx, cancel: cancel}
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		s.mu.Unlock()
		s.connections.Add(1)
		go c.serve()
	}
}

// forget ends the account of a connection.
func (s *Server) forget(c *conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.memory -= c.memory
	if err != nil {
		s.untidy = append(s.untidy, fmt.Errorf("connection %d: %w", c.serial, err))
	}
	if len(s.conns) == 0 {
		close(s.idle)
		s.idle = make(chan struct{})
	}
	s.wg.Done()
}

// redeem uses a ticket up.
func (s *Server) redeem(id string) (Grant, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.tickets[id]
	delete(s.tickets, id)
	return g, ok
}

// allocate takes n bytes of the server's memory for a session's buffers.
func (s *Server) allocate(c *conn, n int64) bool {
	budget := c.Memory
	if budget == 0 {
		budget = defaultMemory
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > maxSession || s.memory+n-c.memory > budget {
		return false
	}
	s.memory += n - c.memory
	c.memory = n
	return true
}

// fault is what is to go wrong with the next read, 0: nothing.
func (s *Server) fault(c *conn) FaultKind {
	if len(c.Faults) == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	for _, f := range c.Faults {
		if f.Nth == 0 || f.Nth == s.reads {
			return f.Kind
		}
	}
	return 0
}

// mayDrop counts a connection that is to be cut.
func (s *Server) mayDrop(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.DropCount > 0 && s.drops >= c.DropCount {
		return false
	}
	s.drops++
	return true
}
