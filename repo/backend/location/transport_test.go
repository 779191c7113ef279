package location

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// slowPipe is a connection of which the other side takes pause for every read of at most 256 KiB.
func slowPipe(pause time.Duration, reads int) (net.Conn, func()) {
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, stallPiece)
		for range reads {
			time.Sleep(pause)
			for n := 0; n < len(buf); {
				m, err := there.Read(buf[n:])
				if err != nil {
					return
				}
				n += m
			}
		}
	}()
	return here, func() {
		_ = here.Close()
		_ = there.Close()
		<-done
	}
}

func TestConnectionOnWhichNothingMovesEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, closePipe := slowPipe(0, 0)
		defer closePipe()
		for what, do := range map[string]func() error{
			"read":  func() error { _, err := stallConn{c}.Read(make([]byte, 1)); return err },
			"write": func() error { _, err := stallConn{c}.Write(make([]byte, 1)); return err },
		} {
			start := time.Now()
			if err := do(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != stallTimeout {
				t.Errorf("%s after %v: %v", what, time.Since(start), err)
			}
		}
	})
}

// HTTP waits for the answer from the request's first byte on. A slow upload must not end that wait.
func TestSlowUploadIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pieces = 4
		pipe, closePipe := slowPipe(stallTimeout*2/3, pieces)
		defer closePipe()
		c := stallConn{pipe}
		type answer struct {
			err  error
			when time.Time
		}
		read := make(chan answer, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- answer{err, time.Now()}
		}()
		if n, err := c.Write(make([]byte, pieces*stallPiece)); n != pieces*stallPiece || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
		uploaded := time.Now()
		got := <-read
		// The last deadline was set when the last piece began.
		if want := uploaded.Add(stallTimeout - stallTimeout*2/3); !errors.Is(got.err, os.ErrDeadlineExceeded) || !got.when.Equal(want) {
			t.Errorf("waiting ended %v after the upload, want %v: %v", got.when.Sub(uploaded), want.Sub(uploaded), got.err)
		}
	})
}
