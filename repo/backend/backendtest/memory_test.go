package backendtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	. "github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestMemoryKeepsTheGuarantees(t *testing.T) {
	Run(t, func(*testing.T) backend.Backend { return NewMemory() })
}

func TestFaultlessWrapperKeepsTheGuarantees(t *testing.T) {
	Run(t, func(*testing.T) backend.Backend { return Inject(NewMemory()) })
}

func TestFailLeavesNothingAndOnlyTheNthFails(t *testing.T) {
	m := NewMemory()
	f := Inject(m, On(Fail(2), Is(Save), OfType(restic.PackFile)))
	for i := 1; i <= 3; i++ {
		index, pack := Bytes(20), Bytes(20)
		if err := f.Save(t.Context(), HandleOf(restic.IndexFile, index), index); err != nil {
			t.Fatal(err)
		}
		err := f.Save(t.Context(), HandleOf(restic.PackFile, pack), pack)
		if failed := errors.Is(err, ErrInjected); failed != (i == 2) {
			t.Errorf("pack %d: %v", i, err)
		}
		if stored := m.Bytes(HandleOf(restic.PackFile, pack)) != nil; stored != (i != 2) {
			t.Errorf("pack %d stored: %v", i, stored)
		}
	}
	if n := f.Count(Is(Save)); n != 6 {
		t.Errorf("%d saves counted, want 6", n)
	}
	if ops := f.Ops(); ops[0].Handle.Type != restic.IndexFile || ops[1].Handle.Type != restic.PackFile || ops[1].Size != 20 {
		t.Errorf("recorded %v", ops)
	}
}

func TestLoseAnswerHasItsEffect(t *testing.T) {
	m := NewMemory()
	f := Inject(m, LoseAnswer(1))
	data := Bytes(20)
	h := HandleOf(restic.PackFile, data)
	if err := f.Save(t.Context(), h, data); !errors.Is(err, ErrInjected) {
		t.Errorf("Save: %v", err)
	}
	if !bytes.Equal(m.Bytes(h), data) {
		t.Error("nothing was stored")
	}
}

func TestCrashDropsEverythingFromTheNthOn(t *testing.T) {
	for _, keep := range []int{-1, 0, 7} {
		m := NewMemory()
		f := Inject(m, Tear(2, keep))
		var handles []backend.Handle
		for range 3 {
			data := Bytes(20)
			h := HandleOf(restic.PackFile, data)
			handles = append(handles, h)
			if err := f.Save(t.Context(), h, data); errors.Is(err, ErrCrashed) != (len(handles) > 1) {
				t.Errorf("keep %d, save %d: %v", keep, len(handles), err)
			}
		}
		if m.Bytes(handles[0]) == nil || m.Bytes(handles[2]) != nil {
			t.Errorf("keep %d: wrong files survived", keep)
		}
		if torn := m.Bytes(handles[1]); (torn == nil) != (keep < 0) || len(torn) != max(keep, 0) {
			t.Errorf("keep %d: torn file of %d bytes", keep, len(torn))
		}
		if _, err := f.Stat(t.Context(), handles[0]); !errors.Is(err, ErrCrashed) {
			t.Errorf("Stat after the crash: %v", err)
		}
	}
}

func TestBreakDeliversABeginning(t *testing.T) {
	f := Inject(NewMemory(), On(Break(1, 5), Is(Load)))
	data := Bytes(20)
	h := HandleOf(restic.PackFile, data)
	if err := f.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	var got []byte
	err := f.Load(t.Context(), h, 0, 0, func(r io.Reader) (err error) {
		got, err = io.ReadAll(r)
		return err
	})
	if !errors.Is(err, ErrInjected) || !bytes.Equal(got, data[:5]) {
		t.Errorf("%d bytes, %v; want 5 and an error", len(got), err)
	}
}

func TestDelayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Inject(NewMemory(), Delay(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := f.Stat(ctx, backend.Handle{Type: restic.ConfigFile})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		_, err = f.Stat(t.Context(), backend.Handle{Type: restic.ConfigFile})
		if !errors.Is(err, backend.ErrNotExist) || time.Since(start) != time.Hour {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
