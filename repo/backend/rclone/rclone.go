// Package rclone reaches the stores that rclone knows by running `rclone serve restic --stdio`, which speaks
// restic's REST protocol as HTTP/2 on its standard input and output.
//
// It hides the process: [Transport] starts it with the first request, again when it was lost, and ends it on
// CloseIdleConnections. Package rest does the rest.
package rclone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
)

// defaultCommand serves a remote; its name and path follow. restic runs the same.
var defaultCommand = [...]string{"rclone", "serve", "restic", "--stdio", "--b2-hard-delete"}

// Config says what to run.
type Config struct {
	// Remote is what rclone calls remote:path.
	Remote string
	// Program and Args replace rclone and its arguments before the remote; empty means as restic runs it.
	Program string
	Args    []string
	// Upload and Download bound the transfer; nil means no bound.
	Upload, Download *backend.Throttle
}

func (c Config) command() []string {
	command := append([]string(nil), defaultCommand[:]...)
	if c.Program != "" {
		command[0] = c.Program
	}
	if len(c.Args) > 0 {
		command = append(command[:1], c.Args...)
	}
	return append(command, c.Remote)
}

// Transport carries requests for any http URL to a process. CloseIdleConnections, which a backend calls when it is
// closed, ends the process even if a request that was given up still occupies it.
func Transport(cfg Config) http.RoundTripper {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	t := &transport{open: map[*conn]struct{}{}}
	t.Transport = &http.Transport{
		Protocols:          &protocols,
		HTTP2:              &http.HTTP2Config{StrictMaxConcurrentRequests: true}, // one process, not one per 250 requests
		DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			c, err := start(cfg)
			if err != nil {
				return nil, err
			}
			t.mu.Lock()
			t.open[c] = struct{}{}
			t.mu.Unlock()
			return backend.Conn(c, cfg.Upload, cfg.Download), nil
		},
	}
	return t
}

// transport knows its processes.
type transport struct {
	*http.Transport
	mu   sync.Mutex
	open map[*conn]struct{}
}

func (t *transport) CloseIdleConnections() {
	t.Transport.CloseIdleConnections()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.open {
		_ = c.Close() // never fails
		delete(t.open, c)
	}
}

// conn is a process as a connection.
type conn struct {
	in     *os.File // its standard output
	out    *os.File // its standard input
	cmd    *exec.Cmd
	stderr *lockedBuffer
	done   chan struct{} // closed when the process has ended
	once   sync.Once
}

func start(cfg Config) (*conn, error) {
	args := cfg.command()
	theirIn, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), out.Close())
	}
	c := &conn{in: in, out: out, cmd: exec.Command(args[0], args[1:]...), stderr: &lockedBuffer{}, done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirIn, theirOut, c.stderr
	err = c.cmd.Start()
	closing := errors.Join(theirIn.Close(), theirOut.Close())
	if err != nil {
		return nil, errors.Join(backend.Permanent(fmt.Errorf("start %s (install it, or name it with -o rclone.program=...): %w", args[0], err)),
			closing, in.Close(), out.Close())
	}
	go func() {
		_ = c.cmd.Wait() // how it ended is told by its messages
		close(c.done)
	}()
	return c, nil
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	return n, c.describe(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	return n, c.describe(err)
}

// lastWords is how long a process may take to end after it closed its output.
const lastWords = 2 * time.Second

// describe adds what rclone said before it ended.
func (c *conn) describe(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		return err
	}
	// The end of its output may be noticed before its last words are.
	select {
	case <-c.done:
	case <-time.After(lastWords):
	}
	if text := c.stderr.String(); text != "" {
		return fmt.Errorf("rclone: %s: %w", text, err)
	}
	return err
}

// Close ends the process: without input it finishes by itself, and is killed if not.
func (c *conn) Close() error {
	c.once.Do(func() {
		_ = c.out.Close()
		select {
		case <-c.done:
		case <-time.After(5 * time.Second):
			_ = c.cmd.Process.Kill()
			<-c.done
		}
		_ = c.in.Close()
	})
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.in.SetDeadline(t), c.out.SetDeadline(t))
}
func (c *conn) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
func (c *conn) LocalAddr() net.Addr                { return pipeAddr{} }
func (c *conn) RemoteAddr() net.Addr               { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "rclone" }

// lockedBuffer keeps the first messages of rclone but the notice about a missing configuration file.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const keptMessages = 1000

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := keptMessages - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for line := range strings.Lines(b.buf.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "using defaults") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
