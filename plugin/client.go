package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// NewClient is the [Service] at the other end of conn, which speaks the protocol of proto/vmkeep/plugin/v1. host
// names the calling program and its version in the plugin's log. [Load] starts a plugin process and connects to it.
func NewClient(conn grpc.ClientConnInterface, host string) Service {
	return &client{rpc: pb.NewKeepServiceClient(conn), host: host}
}

// client asks a plugin over the wire.
type client struct {
	rpc   pb.KeepServiceClient
	host  string
	calls inFlight
}

var _ Service = (*client)(nil)

// failing is any answer: all of them can say that the call failed.
type failing interface{ GetError() *pb.Diagnostic }

// outcome is the error of an answered call. A cancelled one also wraps the cause of ctx's end.
func outcome(ctx context.Context, d *pb.Diagnostic) error {
	if d == nil {
		return nil
	}
	err := failure(d)
	if e := err.(*Error); e.Code == CodeCancelled && ctx.Err() != nil {
		e.Err = context.Cause(ctx)
	}
	return err
}

// named is a client about to make a call that people know by a name.
type named struct {
	*client
	what string
}

func (c *client) named(what string) named { return named{c, what} }

// ask makes a call that has one answer.
func ask[Q any, A failing](ctx context.Context, n named, rpc func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	var none A
	if ctx.Err() != nil {
		return none, asError(context.Cause(ctx))
	}
	call, finish := n.lasting(ctx)
	defer finish()
	a, err := rpc(call, q)
	if err != nil {
		return none, broken(ctx, n.what, err)
	}
	return a, outcome(ctx, a.GetError())
}

func (c *client) Info(ctx context.Context) (Info, error) {
	a, err := ask(ctx, c.named("info"), c.rpc.Info, &pb.InfoRequest{Host: c.host})
	return from[Info](a.GetInfo()), err
}

func (c *client) Schema(ctx context.Context) ([]Field, error) {
	a, err := ask(ctx, c.named("schema"), c.rpc.Schema, &pb.SchemaRequest{})
	return fromAll[Field](a.GetFields()), err
}

func (c *client) Validate(ctx context.Context, config Config) ([]Diagnostic, error) {
	q, err := request[*pb.Config](config)
	if err != nil {
		return nil, err
	}
	a, err := ask(ctx, c.named("validate"), c.rpc.Validate, &pb.ValidateRequest{Config: q})
	return fromAll[Diagnostic](a.GetDiagnostics()), err
}

func (c *client) Configure(ctx context.Context, config Config) error {
	q, err := request[*pb.Config](config)
	if err != nil {
		return err
	}
	_, err = ask(ctx, c.named("configure"), c.rpc.Configure, &pb.ConfigureRequest{Config: q})
	return err
}

func (c *client) InitRepository(ctx context.Context) (Repository, error) {
	a, err := ask(ctx, c.named("init"), c.rpc.InitRepository, &pb.InitRepositoryRequest{})
	return from[Repository](a.GetRepository()), err
}

func (c *client) PlanRestore(ctx context.Context, r RestoreRequest) (RestorePlan, error) {
	q, err := request[*pb.RestoreSpec](r)
	if err != nil {
		return RestorePlan{}, err
	}
	a, err := ask(ctx, c.named("plan a restore"), c.rpc.PlanRestore, &pb.PlanRestoreRequest{Restore: q})
	return from[RestorePlan](a.GetPlan()), err
}

func (c *client) Forget(ctx context.Context, r ForgetRequest) (ForgetReport, error) {
	q, err := request[*pb.ForgetRequest](r)
	if err != nil {
		return ForgetReport{}, err
	}
	a, err := ask(ctx, c.named("forget"), c.rpc.Forget, q)
	return from[ForgetReport](a.GetReport()), err
}

func (c *client) Stats(ctx context.Context) (Statistics, error) {
	a, err := ask(ctx, c.named("stats"), c.rpc.Stats, &pb.StatsRequest{})
	return from[Statistics](a.GetStatistics()), err
}

func (c *client) Unlock(ctx context.Context, r UnlockRequest) (UnlockReport, error) {
	q, err := request[*pb.UnlockRequest](r)
	if err != nil {
		return UnlockReport{}, err
	}
	a, err := ask(ctx, c.named("unlock"), c.rpc.Unlock, q)
	return from[UnlockReport](a.GetReport()), err
}

func (c *client) Keys(ctx context.Context) ([]Key, error) {
	a, err := ask(ctx, c.named("list keys"), c.rpc.Keys, &pb.KeysRequest{})
	return fromAll[Key](a.GetKeys()), err
}

func (c *client) AddKey(ctx context.Context, r KeyRequest) (Key, error) {
	q, err := request[*pb.NewKey](r)
	if err != nil {
		return Key{}, err
	}
	a, err := ask(ctx, c.named("add a key"), c.rpc.AddKey, &pb.AddKeyRequest{Key: q})
	return from[Key](a.GetKey()), err
}

func (c *client) RemoveKey(ctx context.Context, id string) error {
	_, err := ask(ctx, c.named("remove a key"), c.rpc.RemoveKey, &pb.RemoveKeyRequest{Id: id})
	return err
}

func (c *client) ChangePassword(ctx context.Context, r KeyRequest) (Key, error) {
	q, err := request[*pb.NewKey](r)
	if err != nil {
		return Key{}, err
	}
	a, err := ask(ctx, c.named("change the password"), c.rpc.ChangePassword, &pb.ChangePasswordRequest{Key: q})
	return from[Key](a.GetKey()), err
}

func (c *client) StatFile(ctx context.Context, r FileRequest) (File, error) {
	q, err := request[*pb.FileSpec](r)
	if err != nil {
		return File{}, err
	}
	a, err := ask(ctx, c.named("describe a file"), c.rpc.StatFile, &pb.StatFileRequest{Files: q})
	return from[File](a.GetFile()), err
}

func (c *client) Doctor(ctx context.Context) ([]Finding, error) {
	a, err := ask(ctx, c.named("doctor"), c.rpc.Doctor, &pb.DoctorRequest{})
	return fromAll[Finding](a.GetFindings()), err
}

// Drain returns when ctx ends even if the plugin does not: it is the last call before the process is ended.
func (c *client) Drain(ctx context.Context) error {
	q := &pb.DrainRequest{}
	if deadline, ok := ctx.Deadline(); ok {
		q.Timeout = durationpb.New(time.Until(deadline))
	}
	a, err := c.rpc.Drain(ctx, q)
	if err != nil {
		return broken(ctx, "drain", err)
	}
	return outcome(ctx, a.GetError())
}

// operating is a message of an operation: an event, or the end with a report.
type operating[R any] interface {
	failing
	GetEvent() *pb.Event
	GetReport() R
}

// operation makes a call with events and returns its last message's report.
func operation[R comparable, M any](ctx context.Context, n named, emit func(Event), start start[M]) (R, error) {
	var none R
	if ctx.Err() != nil {
		return none, asError(context.Cause(ctx))
	}
	call, finish := n.lasting(ctx)
	defer finish()
	stream, err := start(call)
	if err != nil {
		return none, broken(ctx, n.what, err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			err = errors.New("it ended without a report")
		}
		if err != nil {
			return none, broken(ctx, n.what, err)
		}
		o := any(m).(operating[R])
		if e := o.GetEvent(); e != nil && emit != nil {
			emit(from[Event](e))
		}
		if report := o.GetReport(); report != none {
			return report, outcome(ctx, o.GetError())
		}
	}
}

// start makes a call that is answered with a stream.
type start[M any] func(context.Context) (grpc.ServerStreamingClient[M], error)

// with is the call of an RPC with its request.
func with[Q, M any](rpc func(context.Context, Q, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error), q Q) start[M] {
	return func(ctx context.Context) (grpc.ServerStreamingClient[M], error) { return rpc(ctx, q) }
}

func (c *client) Backup(ctx context.Context, r BackupRequest, emit func(Event)) (BackupReport, error) {
	q, err := request[*pb.BackupSpec](r)
	if err != nil {
		return BackupReport{}, err
	}
	report, err := operation[*pb.BackupReport](ctx, c.named("backup"), emit, with(c.rpc.Backup, &pb.BackupRequest{Backup: q}))
	return from[BackupReport](report), err
}

func (c *client) Restore(ctx context.Context, r RestoreRequest, emit func(Event)) (RestoreReport, error) {
	q, err := request[*pb.RestoreSpec](r)
	if err != nil {
		return RestoreReport{}, err
	}
	report, err := operation[*pb.RestoreReport](ctx, c.named("restore"), emit, with(c.rpc.Restore, &pb.RestoreRequest{Restore: q}))
	return from[RestoreReport](report), err
}

func (c *client) Check(ctx context.Context, r CheckRequest, emit func(Event)) (CheckReport, error) {
	q, err := request[*pb.CheckRequest](r)
	if err != nil {
		return CheckReport{}, err
	}
	report, err := operation[*pb.CheckReport](ctx, c.named("check"), emit, with(c.rpc.Check, q))
	return from[CheckReport](report), err
}

func (c *client) Verify(ctx context.Context, r VerifyRequest, emit func(Event)) (VerifyReport, error) {
	q, err := request[*pb.VerifyRequest](r)
	if err != nil {
		return VerifyReport{}, err
	}
	report, err := operation[*pb.VerifyReport](ctx, c.named("verify"), emit, with(c.rpc.Verify, q))
	return from[VerifyReport](report), err
}

func (c *client) Prune(ctx context.Context, r PruneRequest, emit func(Event)) (PruneReport, error) {
	q, err := request[*pb.PruneRequest](r)
	if err != nil {
		return PruneReport{}, err
	}
	report, err := operation[*pb.PruneReport](ctx, c.named("prune"), emit, with(c.rpc.Prune, q))
	return from[PruneReport](report), err
}

func (c *client) RepairIndex(ctx context.Context, r RepairIndexRequest, emit func(Event)) (RepairIndexReport, error) {
	q, err := request[*pb.RepairIndexRequest](r)
	if err != nil {
		return RepairIndexReport{}, err
	}
	report, err := operation[*pb.RepairIndexReport](ctx, c.named("repair the index"), emit, with(c.rpc.RepairIndex, q))
	return from[RepairIndexReport](report), err
}

func (c *client) RepairPoints(ctx context.Context, r RepairPointsRequest, emit func(Event)) (RepairPointsReport, error) {
	q, err := request[*pb.RepairPointsRequest](r)
	if err != nil {
		return RepairPointsReport{}, err
	}
	report, err := operation[*pb.RepairPointsReport](ctx, c.named("repair points"), emit, with(c.rpc.RepairPoints, q))
	return from[RepairPointsReport](report), err
}

func (c *client) Recover(ctx context.Context, emit func(Event)) (RecoverReport, error) {
	report, err := operation[*pb.RecoverReport](ctx, c.named("recover"), emit, with(c.rpc.Recover, &pb.RecoverRequest{}))
	return from[RecoverReport](report), err
}

// feed makes a call that streams data without side effects: it may be dropped at any time. fn gets every message;
// its error ends the call and is returned as it is.
func feed[M any](ctx context.Context, n named, start start[M], fn func(*M) error) error {
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := start(call)
	if err != nil {
		return broken(ctx, n.what, err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken(ctx, n.what, err)
		}
		if d := any(m).(failing).GetError(); d != nil {
			return outcome(ctx, d)
		}
		if err := fn(m); err != nil {
			return err
		}
	}
}

func (c *client) Machines(ctx context.Context, s Selection) ([]Machine, error) {
	q, err := request[*pb.Selection](s)
	if err != nil {
		return nil, err
	}
	var all []Machine
	err = feed(ctx, c.named("list machines"), with(c.rpc.Machines, &pb.MachinesRequest{Selection: q}), func(m *pb.MachinesResponse) error {
		all = append(all, fromAll[Machine](m.GetMachines())...)
		return nil
	})
	return all, err
}

func (c *client) Points(ctx context.Context, f PointFilter) ([]Point, error) {
	q, err := request[*pb.PointFilter](f)
	if err != nil {
		return nil, err
	}
	var all []Point
	err = feed(ctx, c.named("list points"), with(c.rpc.Points, &pb.PointsRequest{Filter: q}), func(m *pb.PointsResponse) error {
		all = append(all, fromAll[Point](m.GetPoints())...)
		return nil
	})
	return all, err
}

func (c *client) ReadDisk(ctx context.Context, r ReadDiskRequest, fn func(Frame) error) error {
	q, err := request[*pb.ReadDiskRequest](r)
	if err != nil {
		return err
	}
	return feed(ctx, c.named("read a disk"), with(c.rpc.ReadDisk, q), func(m *pb.ReadDiskResponse) error { return take(m.GetFrame(), fn) })
}

func (c *client) ReadFile(ctx context.Context, r FileRequest, fn func(Frame) error) error {
	q, err := request[*pb.FileSpec](r)
	if err != nil {
		return err
	}
	return feed(ctx, c.named("read a file"), with(c.rpc.ReadFile, &pb.ReadFileRequest{Files: q}), func(m *pb.ReadFileResponse) error { return take(m.GetFrame(), fn) })
}

// take hands a frame on, unless it contradicts itself.
func take(f *pb.Frame, fn func(Frame) error) error {
	if n := len(f.GetData()); n > 0 && int64(n) != f.GetLength() || f.GetLength() <= 0 || f.GetOffset() < 0 {
		return &Error{Code: CodeInternal, Summary: "the plugin sent a frame that contradicts itself",
			Detail: fmt.Sprintf("%d bytes at offset %d, announced as %d", n, f.GetOffset(), f.GetLength()),
			Remedy: "check that plugin and host have the same version"}
	}
	return fn(Frame{Offset: f.GetOffset(), Length: f.GetLength(), Data: f.GetData()})
}

func (c *client) ListFiles(ctx context.Context, r FileRequest, fn func(File) error) error {
	q, err := request[*pb.FileSpec](r)
	if err != nil {
		return err
	}
	return feed(ctx, c.named("list files"), with(c.rpc.ListFiles, &pb.ListFilesRequest{Files: q}), func(m *pb.ListFilesResponse) error {
		for _, f := range m.GetFiles() {
			if err := fn(from[File](f)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *client) TarFiles(ctx context.Context, r FileRequest, fn func([]byte) error) error {
	q, err := request[*pb.FileSpec](r)
	if err != nil {
		return err
	}
	return feed(ctx, c.named("archive files"), with(c.rpc.TarFiles, &pb.TarFilesRequest{Files: q}), func(m *pb.TarFilesResponse) error { return fn(m.GetData()) })
}
