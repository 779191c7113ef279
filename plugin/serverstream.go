package plugin

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// FrameSize bounds the data of one frame on the wire in bytes. Larger messages gain nothing and hold memory on both
// sides; every gRPC library accepts this size by default.
const FrameSize = 1 << 20

// Lists cross in batches of listBatch elements, and files after listDelay at the latest.
const (
	listBatch = 256
	listDelay = 200 * time.Millisecond
)

// outbox holds the events of one operation until the host has taken them. A slow host must not stop the operation,
// which has a snapshot open: figures that a newer event supersedes are dropped, all else waits.
type outbox struct {
	mu     sync.Mutex
	queue  []*pb.Event
	wake   chan struct{} // holds a token when there is something to do
	closed bool
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

func (o *outbox) put(e Event) {
	ev := to[*pb.Event](e) // now: the engine may use its Progress again
	o.mu.Lock()
	defer o.mu.Unlock()
	if ev.Kind == pb.EventKind_EVENT_KIND_PROGRESS {
		for i, old := range o.queue {
			if old.Kind == ev.Kind && old.Machine == ev.Machine && old.Disk == ev.Disk && old.Phase == ev.Phase {
				o.queue = append(o.queue[:i], o.queue[i+1:]...)
				break
			}
		}
	}
	o.queue = append(o.queue, ev)
	o.signal()
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// deliver sends events in order until the outbox is closed and empty. After an error of send it only discards.
func (o *outbox) deliver(send func(*pb.Event) error) {
	var broken error
	for range o.wake {
		o.mu.Lock()
		events, closed := o.queue, o.closed
		o.queue = nil
		o.mu.Unlock()
		for _, e := range events {
			if broken == nil {
				broken = send(e)
			}
		}
		if closed {
			return
		}
	}
}

// operate carries out an operation: its events, then the message that last makes of report and error.
func operate[R, M any](s *server, st grpc.ServerStreamingServer[M], fn func(context.Context, func(Event)) (R, error), wrap reply[R, M]) error {
	box := newOutbox()
	var delivering sync.WaitGroup
	delivering.Go(func() { box.deliver(func(e *pb.Event) error { return st.Send(wrap.event(e)) }) })
	var report R
	err := s.calls.run(st.Context(), func(ctx context.Context) (err error) {
		report, err = fn(ctx, box.put)
		return err
	})
	box.close()
	delivering.Wait()
	return st.Send(wrap.last(report, diagnostic(err)))
}

// asked is a call of the service with its request.
func asked[Q, R any](fn func(context.Context, Q, func(Event)) (R, error), q Q) func(context.Context, func(Event)) (R, error) {
	return func(ctx context.Context, emit func(Event)) (R, error) { return fn(ctx, q, emit) }
}

// reply makes the messages of one RPC.
type reply[R, M any] struct {
	event func(*pb.Event) *M
	last  func(R, *pb.Diagnostic) *M
}

func (s *server) Backup(r *pb.BackupRequest, st grpc.ServerStreamingServer[pb.BackupResponse]) error {
	q, err := received[BackupRequest](r.GetBackup())
	if err != nil {
		return st.Send(&pb.BackupResponse{Error: diagnostic(err), Report: &pb.BackupReport{}})
	}
	return operate(s, st, asked(s.svc.Backup, q), reply[BackupReport, pb.BackupResponse]{
		func(e *pb.Event) *pb.BackupResponse { return &pb.BackupResponse{Event: e} },
		func(r BackupReport, e *pb.Diagnostic) *pb.BackupResponse {
			return &pb.BackupResponse{Report: to[*pb.BackupReport](r), Error: e}
		}})
}

func (s *server) Restore(r *pb.RestoreRequest, st grpc.ServerStreamingServer[pb.RestoreResponse]) error {
	q, err := received[RestoreRequest](r.GetRestore())
	if err != nil {
		return st.Send(&pb.RestoreResponse{Error: diagnostic(err), Report: &pb.RestoreReport{}})
	}
	return operate(s, st, asked(s.svc.Restore, q), reply[RestoreReport, pb.RestoreResponse]{
		func(e *pb.Event) *pb.RestoreResponse { return &pb.RestoreResponse{Event: e} },
		func(r RestoreReport, e *pb.Diagnostic) *pb.RestoreResponse {
			return &pb.RestoreResponse{Report: to[*pb.RestoreReport](r), Error: e}
		}})
}

func (s *server) Check(r *pb.CheckRequest, st grpc.ServerStreamingServer[pb.CheckResponse]) error {
	q, err := received[CheckRequest](r)
	if err != nil {
		return st.Send(&pb.CheckResponse{Error: diagnostic(err), Report: &pb.CheckReport{}})
	}
	return operate(s, st, asked(s.svc.Check, q), reply[CheckReport, pb.CheckResponse]{
		func(e *pb.Event) *pb.CheckResponse { return &pb.CheckResponse{Event: e} },
		func(r CheckReport, e *pb.Diagnostic) *pb.CheckResponse {
			return &pb.CheckResponse{Report: to[*pb.CheckReport](r), Error: e}
		}})
}

func (s *server) Verify(r *pb.VerifyRequest, st grpc.ServerStreamingServer[pb.VerifyResponse]) error {
	q, err := received[VerifyRequest](r)
	if err != nil {
		return st.Send(&pb.VerifyResponse{Error: diagnostic(err), Report: &pb.VerifyReport{}})
	}
	return operate(s, st, asked(s.svc.Verify, q), reply[VerifyReport, pb.VerifyResponse]{
		func(e *pb.Event) *pb.VerifyResponse { return &pb.VerifyResponse{Event: e} },
		func(r VerifyReport, e *pb.Diagnostic) *pb.VerifyResponse {
			return &pb.VerifyResponse{Report: to[*pb.VerifyReport](r), Error: e}
		}})
}

func (s *server) Prune(r *pb.PruneRequest, st grpc.ServerStreamingServer[pb.PruneResponse]) error {
	q, err := received[PruneRequest](r)
	if err != nil {
		return st.Send(&pb.PruneResponse{Error: diagnostic(err), Report: &pb.PruneReport{}})
	}
	return operate(s, st, asked(s.svc.Prune, q), reply[PruneReport, pb.PruneResponse]{
		func(e *pb.Event) *pb.PruneResponse { return &pb.PruneResponse{Event: e} },
		func(r PruneReport, e *pb.Diagnostic) *pb.PruneResponse {
			return &pb.PruneResponse{Report: to[*pb.PruneReport](r), Error: e}
		}})
}

func (s *server) RepairIndex(r *pb.RepairIndexRequest, st grpc.ServerStreamingServer[pb.RepairIndexResponse]) error {
	q, err := received[RepairIndexRequest](r)
	if err != nil {
		return st.Send(&pb.RepairIndexResponse{Error: diagnostic(err), Report: &pb.RepairIndexReport{}})
	}
	return operate(s, st, asked(s.svc.RepairIndex, q), reply[RepairIndexReport, pb.RepairIndexResponse]{
		func(e *pb.Event) *pb.RepairIndexResponse { return &pb.RepairIndexResponse{Event: e} },
		func(r RepairIndexReport, e *pb.Diagnostic) *pb.RepairIndexResponse {
			return &pb.RepairIndexResponse{Report: to[*pb.RepairIndexReport](r), Error: e}
		}})
}

func (s *server) RepairPoints(r *pb.RepairPointsRequest, st grpc.ServerStreamingServer[pb.RepairPointsResponse]) error {
	q, err := received[RepairPointsRequest](r)
	if err != nil {
		return st.Send(&pb.RepairPointsResponse{Error: diagnostic(err), Report: &pb.RepairPointsReport{}})
	}
	return operate(s, st, asked(s.svc.RepairPoints, q), reply[RepairPointsReport, pb.RepairPointsResponse]{
		func(e *pb.Event) *pb.RepairPointsResponse { return &pb.RepairPointsResponse{Event: e} },
		func(r RepairPointsReport, e *pb.Diagnostic) *pb.RepairPointsResponse {
			return &pb.RepairPointsResponse{Report: to[*pb.RepairPointsReport](r), Error: e}
		}})
}

func (s *server) Recover(_ *pb.RecoverRequest, st grpc.ServerStreamingServer[pb.RecoverResponse]) error {
	return operate(s, st, s.svc.Recover, reply[RecoverReport, pb.RecoverResponse]{
		func(e *pb.Event) *pb.RecoverResponse { return &pb.RecoverResponse{Event: e} },
		func(r RecoverReport, e *pb.Diagnostic) *pb.RecoverResponse {
			return &pb.RecoverResponse{Report: to[*pb.RecoverReport](r), Error: e}
		}})
}

// feed runs a call that hands out its data piece by piece. When the connection breaks, Send fails and with it the
// call; there is nobody to tell then.
func (s *server) feed(ctx context.Context, fn func(context.Context) error, fail func(*pb.Diagnostic) error) error {
	if err := s.calls.run(ctx, fn); err != nil {
		return fail(diagnostic(err))
	}
	return nil
}

func (s *server) Machines(r *pb.MachinesRequest, st grpc.ServerStreamingServer[pb.MachinesResponse]) error {
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[Selection](r.GetSelection())
		if err != nil {
			return err
		}
		machines, err := s.svc.Machines(ctx, q)
		if err != nil {
			return err
		}
		return batches(machines, func(ms []Machine) error {
			return st.Send(&pb.MachinesResponse{Machines: toAll[*pb.Machine](ms)})
		})
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.MachinesResponse{Error: e}) })
}

func (s *server) Points(r *pb.PointsRequest, st grpc.ServerStreamingServer[pb.PointsResponse]) error {
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[PointFilter](r.GetFilter())
		if err != nil {
			return err
		}
		points, err := s.svc.Points(ctx, q)
		if err != nil {
			return err
		}
		return batches(points, func(ps []Point) error {
			return st.Send(&pb.PointsResponse{Points: toAll[*pb.Point](ps)})
		})
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.PointsResponse{Error: e}) })
}

func batches[T any](all []T, send func([]T) error) error {
	for len(all) > 0 {
		n := min(len(all), listBatch)
		if err := send(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func (s *server) ReadDisk(r *pb.ReadDiskRequest, st grpc.ServerStreamingServer[pb.ReadDiskResponse]) error {
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[ReadDiskRequest](r)
		if err != nil {
			return err
		}
		return s.svc.ReadDisk(ctx, q, frames(func(f *pb.Frame) error { return st.Send(&pb.ReadDiskResponse{Frame: f}) }))
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.ReadDiskResponse{Error: e}) })
}

func (s *server) ReadFile(r *pb.ReadFileRequest, st grpc.ServerStreamingServer[pb.ReadFileResponse]) error {
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[FileRequest](r.GetFiles())
		if err != nil {
			return err
		}
		return s.svc.ReadFile(ctx, q, frames(func(f *pb.Frame) error { return st.Send(&pb.ReadFileResponse{Frame: f}) }))
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.ReadFileResponse{Error: e}) })
}

// frames cuts frames to [FrameSize]. gRPC has serialised a message when Send returns, so that no data is kept.
func frames(send func(*pb.Frame) error) func(Frame) error {
	return func(f Frame) error {
		if f.Data == nil {
			if f.Length == 0 {
				return nil
			}
			return send(&pb.Frame{Offset: f.Offset, Length: f.Length})
		}
		for off := f.Offset; len(f.Data) > 0; {
			n := min(len(f.Data), FrameSize)
			if err := send(&pb.Frame{Offset: off, Length: int64(n), Data: f.Data[:n]}); err != nil {
				return err
			}
			f.Data, off = f.Data[n:], off+int64(n)
		}
		return nil
	}
}

func (s *server) TarFiles(r *pb.TarFilesRequest, st grpc.ServerStreamingServer[pb.TarFilesResponse]) error {
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[FileRequest](r.GetFiles())
		if err != nil {
			return err
		}
		return s.svc.TarFiles(ctx, q, func(data []byte) error {
			for len(data) > 0 {
				n := min(len(data), FrameSize)
				if err := st.Send(&pb.TarFilesResponse{Data: data[:n]}); err != nil {
					return err
				}
				data = data[n:]
			}
			return nil
		})
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.TarFilesResponse{Error: e}) })
}

func (s *server) ListFiles(r *pb.ListFilesRequest, st grpc.ServerStreamingServer[pb.ListFilesResponse]) error {
	var batch []*pb.File
	sent := time.Now()
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := st.Send(&pb.ListFilesResponse{Files: batch})
		batch, sent = nil, time.Now()
		return err
	}
	return s.feed(st.Context(), func(ctx context.Context) error {
		q, err := received[FileRequest](r.GetFiles())
		if err != nil {
			return err
		}
		err = s.svc.ListFiles(ctx, q, func(f File) error {
			batch = append(batch, to[*pb.File](f))
			if len(batch) < listBatch && time.Since(sent) < listDelay {
				return nil
			}
			return flush()
		})
		if e := flush(); err == nil { // what was found before the error counts
			err = e
		}
		return err
	}, func(e *pb.Diagnostic) error { return st.Send(&pb.ListFilesResponse{Error: e}) })
}
