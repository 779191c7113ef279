package vixdisklib

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// process is a running helper as seen from here.
type process struct {
	cmd    *exec.Cmd
	socket *os.File
	memory *memory
	stderr *tail
	clean  redactor
	log    func(Level, string)
	loaded wire.Loaded
	users  int // disks; under the turn of the shared it belongs to
	to     wire.Connection
	use    *attaching // nil: it attaches nothing

	out wire.Writer // to socket

	mu      sync.Mutex
	pending map[uint64]func(code uint64, result []byte) // nil once the helper is gone
	last    uint64
	reason  error  // why it was killed
	panic   string // what the library said before it ended the process
	host    string // last host a disk was opened on

	dead chan struct{} // closed when the process is gone and reaped
	why  error         // after dead: answers vddk.ErrConnectionLost
}

// attend reads what the helper sends, until it is gone.
func (p *process) attend() {
	err := p.listen(bufio.NewReader(p.socket))
	if err != nil {
		p.kill(err)
	}
	waited := p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	how := p.cmd.ProcessState.String()
	switch {
	case p.reason != nil:
		how = p.reason.Error()
	case p.panic != "":
		how = "the library panicked: " + p.panic
	case waited != nil:
		how = strings.TrimSpace(how + ". " + p.clean.clean(p.stderr.String()))
	}
	p.why = fmt.Errorf("%w: the helper process of VMware's library ended: %s", vddk.ErrConnectionLost, how)
	p.pending = nil
	close(p.dead)
}

func (p *process) listen(r io.Reader) error {
	for {
		f, err := wire.Next(r)
		if errors.Is(err, wire.ErrFrame) {
			return err
		}
		if err != nil {
			return nil // the end of the process tells more
		}
		switch f.Kind {
		case wire.Reply:
			code, result, err := wire.ParseReply(f.Body)
			if err != nil {
				return err
			}
			p.mu.Lock()
			done := p.pending[f.Number]
			delete(p.pending, f.Number)
			p.mu.Unlock()
			if done == nil {
				return fmt.Errorf("answer to nothing: %w", wire.ErrFrame)
			}
			done(code, result)
		case wire.Log:
			level, text, err := wire.ParseLog(f.Body)
			if err != nil {
				return err
			}
			p.hear(level, p.clean.clean(text))
		default:
			return fmt.Errorf("a %s from the helper: %w", f.Kind, wire.ErrFrame)
		}
	}
}

// hear takes a line of the library's log.
func (p *process) hear(level uint8, text string) {
	p.mu.Lock()
	if level == wire.LevelPanic {
		p.panic = text
	}
	if strings.HasPrefix(text, "Opened '") {
		// For example: Opened 'vpxa-nfcssl://[ds1] web/web.vmdk@esx1:902'
		if m := regexp.MustCompile(`@([^@']+:[0-9]+)'`).FindStringSubmatch(text); m != nil {
			p.host = m[1]
		}
	}
	p.mu.Unlock()
	if p.log != nil {
		p.log(Level(level), text)
	}
}

func (p *process) servingHost() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host
}

func (p *process) libraryName() string { return filepath.Base(p.loaded.Path) }

// lost tells why the helper is gone; nil: it is not.
func (p *process) lost() error {
	select {
	case <-p.dead:
		return p.why
	default:
		return nil
	}
}

// kill ends a helper that hangs or breaks the protocol.
func (p *process) kill(reason error) {
	p.mu.Lock()
	if p.reason == nil {
		p.reason = reason
	}
	p.mu.Unlock()
	_ = p.cmd.Process.Kill() // it may be gone already
}

// post sends a request; done is called by the goroutine that reads, at most once, and not at all when the helper dies.
func (p *process) post(kind wire.Kind, body []byte, done func(code uint64, result []byte)) {
	p.mu.Lock()
	if p.pending == nil {
		p.mu.Unlock()
		return
	}
	p.last++
	number := p.last
	p.pending[number] = done
	p.mu.Unlock()
	p.out.Send(wire.Frame{Kind: kind, Number: number, Body: body})
}

// failure is the error of an answer; nil for success.
func (p *process) failure(code uint64, result []byte) error {
	if code == 0 {
		return nil
	}
	f, err := wire.Decode[wire.Failure](result)
	if err != nil {
		return err
	}
	text := p.clean.clean(f.Text)
	if code == wire.CodeHelper {
		return errors.New(text)
	}
	return newError(f.Call, code, text)
}

// call sends a request and waits for the answer. A library that takes longer than patience is killed with its process.
func (p *process) call(ctx context.Context, kind wire.Kind, body []byte, patience time.Duration) ([]byte, error) {
	type answer struct {
		code   uint64
		result []byte
	}
	answers := make(chan answer, 1)
	p.post(kind, body, func(code uint64, result []byte) { answers <- answer{code, result} })
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case a := <-answers:
			return a.result, p.failure(a.code, a.result)
		case <-p.dead:
			return nil, p.why
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timer.C:
			p.kill(fmt.Errorf("it did not answer to %q within %s and was killed", kind, patience))
		}
	}
}

// end has the helper give everything back and waits until it is gone, for grace at most.
func (p *process) end(grace time.Duration) error {
	p.post(wire.Bye, nil, func(uint64, []byte) {})
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.dead:
	case <-timer.C:
		p.kill(fmt.Errorf("it did not end within %s and was killed", grace))
		<-p.dead
	}
	return errors.Join(p.socket.Close(), p.memory.end())
}

// tail keeps the last lines written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 8 << 10 // bytes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if extra := len(t.b) - maxTail; extra > 0 {
		// Whole lines go: half a secret would not be recognised.
		if i := strings.IndexByte(string(t.b[extra:]), '\n'); i >= 0 {
			t.b = append(t.b[:0], t.b[extra+i+1:]...)
		} else {
			t.b = t.b[:0]
		}
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
