package wire

import (
	"io"
	"sync"
)

// Writer sends frames from many goroutines. What is sent while a write is under way goes out together with the next one.
type Writer struct {
	W io.Writer

	mu      sync.Mutex
	writing bool
	next    []byte // to be written
	spare   []byte
}

// Send sends a frame. A failure to write is not told: who reads from the other side notices that it is gone.
func (w *Writer) Send(f Frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = f.Append(w.next)
	if w.writing {
		return
	}
	w.writing = true
	for len(w.next) > 0 {
		b := w.next
		w.next = w.spare[:0]
		w.mu.Unlock()
		_, _ = w.W.Write(b)
		clear(b) // there may be a password
		w.mu.Lock()
		w.spare = b
	}
	w.writing = false
}
