package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"github.com/vmkeep/vmkeep/repo/backend"
)

// session is one ssh process and the SFTP client that talks through it.
type session struct {
	*sftp.Client
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when the process has ended
}

// command is what to run, without any secret: those are ssh's.
func (c Config) command() []string {
	if len(c.Command) > 0 {
		return c.Command
	}
	args := []string{"ssh", c.Host}
	if c.Port != "" {
		args = append(args, "-p", c.Port)
	}
	if c.User != "" {
		args = append(args, "-l", c.User)
	}
	args = append(args, c.Args...)
	// ssh takes the first value it is given, so c.Args wins. Without these a vanished server hangs a session for
	// ever; with them it is lost after two minutes.
	return append(args, "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4", "-s", "sftp")
}

// with runs fn on the session. When ctx ends and fn does not return, the session is given up: a request that the
// server never answers can only be ended together with its connection.
func (b *Backend) with(ctx context.Context, fn func(*session) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s, err := b.session(ctx)
	if err != nil {
		return err
	}
	const grace = 5 * time.Second // of an honest server to answer what is under way
	returned := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-returned:
		case <-time.After(grace):
			s.kill()
		}
	})
	err = fn(s)
	close(returned)
	stop()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	if s.lost(err) {
		b.forget(s)
		return s.describe(fmt.Errorf("connection lost: %w", err))
	}
	return explain(err)
}

// session gives the current session, or a new one.
func (b *Backend) session(ctx context.Context) (*session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, backend.Permanent(errors.New("backend is closed"))
	}
	if b.current != nil {
		select {
		case <-b.current.done:
		default:
			return b.current, nil
		}
	}
	s, err := dial(ctx, b.cfg)
	if err != nil {
		return nil, err
	}
	b.current = s
	return s, nil
}

func (b *Backend) forget(s *session) {
	b.mu.Lock()
	if b.current == s {
		b.current = nil
	}
	b.mu.Unlock()
	s.kill()
}

// Close ends the session.
func (b *Backend) Close() error {
	b.mu.Lock()
	s := b.current
	b.current, b.closed = nil, true
	b.mu.Unlock()
	if s == nil {
		return nil
	}
	_ = s.Client.Close() // that the other side was gone already is no harm
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		s.kill()
		<-s.done
	}
	return nil
}

func dial(ctx context.Context, cfg Config) (*session, error) {
	args := cfg.command()
	cmd := exec.Command(args[0], args[1:]...)
	detach(cmd)
	s := &session{cmd: cmd, stderr: &tail{}, done: make(chan struct{})}
	cmd.Stderr = s.stderr
	// ssh's message when a key needs a passphrase is then about the missing terminal, not a hanging prompt.
	cmd.Env = append(os.Environ(), "SSH_ASKPASS_REQUIRE=never")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, backend.Permanent(fmt.Errorf("start %s: %w", args[0], err))
	}
	stop := context.AfterFunc(ctx, s.kill)
	s.Client, err = sftp.NewClientPipe(cfg.Download.Reader(stdout), cfg.Upload.Writer(stdin),
		sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true), sftp.MaxConcurrentRequestsPerFile(64))
	if !stop() && err == nil {
		err = errors.Join(context.Cause(ctx), s.Client.Close())
	}
	if err != nil {
		s.kill()
		_ = cmd.Wait() // how it ended is told by its messages
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, s.describe(fmt.Errorf("start SFTP session with %s: %w", args[0], err))
	}
	go func() {
		_ = s.Client.Wait()
		// Waiting before the client has read everything would close its pipe under it.
		_ = cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// kill ends the process; the client then ends by itself.
func (s *session) kill() { _ = s.cmd.Process.Kill() }

// lost reports whether err means that the session cannot be used any more.
func (s *session) lost(err error) bool {
	select {
	case <-s.done:
		return true
	default:
	}
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrClosed)
}

// describe adds what ssh said, and marks what no retry mends.
func (s *session) describe(err error) error {
	text := s.stderr.String()
	if text == "" {
		return err
	}
	err = fmt.Errorf("%w (%s)", err, text)
	for _, hopeless := range []string{
		"Permission denied", "Host key verification failed", "Could not resolve hostname", "subsystem request failed",
		"Bad configuration option", "unknown option", "Identity file", "command not found",
	} {
		if strings.Contains(text, hopeless) {
			return backend.Permanent(err)
		}
	}
	return err
}

// tail keeps the last lines of what ssh says.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 1000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailSize {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.FieldsFunc(string(t.buf), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines, "; ")
}
