package plugin_test

import (
	"context"
	"sync"

	"github.com/vmkeep/vmkeep/plugin"
)

// echo is a [plugin.Service] that remembers what it was asked and answers what it was told: the other end of the
// wire in tests of the wire.
type echo struct {
	mu    sync.Mutex
	asked []any

	err     error
	events  []plugin.Event
	frames  []plugin.Frame
	files   []plugin.File
	answers map[string]any // by method

	during func(ctx context.Context) error // what a call does before it answers; nil: nothing
}

// reply notes the question and gives the answer of a method.
func reply[T any](ctx context.Context, e *echo, method string, q any) (T, error) {
	e.mu.Lock()
	e.asked = append(e.asked, q)
	e.mu.Unlock()
	if e.during != nil {
		if err := e.during(ctx); err != nil {
			var none T
			return none, err
		}
	}
	v, _ := e.answers[method].(T)
	return v, e.err
}

func (e *echo) operate(emit func(plugin.Event)) {
	for _, ev := range e.events {
		emit(ev)
	}
}

func (e *echo) Info(ctx context.Context) (plugin.Info, error) {
	return reply[plugin.Info](ctx, e, "Info", nil)
}
func (e *echo) Schema(ctx context.Context) ([]plugin.Field, error) {
	return reply[[]plugin.Field](ctx, e, "Schema", nil)
}
func (e *echo) Validate(ctx context.Context, c plugin.Config) ([]plugin.Diagnostic, error) {
	return reply[[]plugin.Diagnostic](ctx, e, "Validate", c)
}
func (e *echo) Configure(ctx context.Context, c plugin.Config) error {
	_, err := reply[any](ctx, e, "Configure", c)
	return err
}
func (e *echo) InitRepository(ctx context.Context) (plugin.Repository, error) {
	return reply[plugin.Repository](ctx, e, "InitRepository", nil)
}
func (e *echo) Machines(ctx context.Context, s plugin.Selection) ([]plugin.Machine, error) {
	return reply[[]plugin.Machine](ctx, e, "Machines", s)
}
func (e *echo) Points(ctx context.Context, f plugin.PointFilter) ([]plugin.Point, error) {
	return reply[[]plugin.Point](ctx, e, "Points", f)
}
func (e *echo) PlanRestore(ctx context.Context, r plugin.RestoreRequest) (plugin.RestorePlan, error) {
	return reply[plugin.RestorePlan](ctx, e, "PlanRestore", r)
}
func (e *echo) Forget(ctx context.Context, r plugin.ForgetRequest) (plugin.ForgetReport, error) {
	return reply[plugin.ForgetReport](ctx, e, "Forget", r)
}
func (e *echo) Doctor(ctx context.Context) ([]plugin.Finding, error) {
	return reply[[]plugin.Finding](ctx, e, "Doctor", nil)
}
func (e *echo) Drain(ctx context.Context) error {
	_, err := reply[any](ctx, e, "Drain", nil)
	return err
}
func (e *echo) Backup(ctx context.Context, r plugin.BackupRequest, emit func(plugin.Event)) (plugin.BackupReport, error) {
	e.operate(emit)
	return reply[plugin.BackupReport](ctx, e, "Backup", r)
}
func (e *echo) Restore(ctx context.Context, r plugin.RestoreRequest, emit func(plugin.Event)) (plugin.RestoreReport, error) {
	e.operate(emit)
	return reply[plugin.RestoreReport](ctx, e, "Restore", r)
}
func (e *echo) Check(ctx context.Context, r plugin.CheckRequest, emit func(plugin.Event)) (plugin.CheckReport, error) {
	e.operate(emit)
	return reply[plugin.CheckReport](ctx, e, "Check", r)
}
func (e *echo) Verify(ctx context.Context, r plugin.VerifyRequest, emit func(plugin.Event)) (plugin.VerifyReport, error) {
	e.operate(emit)
	return reply[plugin.VerifyReport](ctx, e, "Verify", r)
}
func (e *echo) Prune(ctx context.Context, r plugin.PruneRequest, emit func(plugin.Event)) (plugin.PruneReport, error) {
	e.operate(emit)
	return reply[plugin.PruneReport](ctx, e, "Prune", r)
}
func (e *echo) RepairIndex(ctx context.Context, r plugin.RepairIndexRequest, emit func(plugin.Event)) (plugin.RepairIndexReport, error) {
	e.operate(emit)
	return reply[plugin.RepairIndexReport](ctx, e, "RepairIndex", r)
}
func (e *echo) RepairPoints(ctx context.Context, r plugin.RepairPointsRequest, emit func(plugin.Event)) (plugin.RepairPointsReport, error) {
	e.operate(emit)
	return reply[plugin.RepairPointsReport](ctx, e, "RepairPoints", r)
}
func (e *echo) Stats(ctx context.Context) (plugin.Statistics, error) {
	return reply[plugin.Statistics](ctx, e, "Stats", nil)
}
func (e *echo) Unlock(ctx context.Context, r plugin.UnlockRequest) (plugin.UnlockReport, error) {
	return reply[plugin.UnlockReport](ctx, e, "Unlock", r)
}
func (e *echo) Keys(ctx context.Context) ([]plugin.Key, error) {
	return reply[[]plugin.Key](ctx, e, "Keys", nil)
}
func (e *echo) AddKey(ctx context.Context, r plugin.KeyRequest) (plugin.Key, error) {
	return reply[plugin.Key](ctx, e, "AddKey", r)
}
func (e *echo) RemoveKey(ctx context.Context, id string) error {
	_, err := reply[any](ctx, e, "RemoveKey", id)
	return err
}
func (e *echo) ChangePassword(ctx context.Context, r plugin.KeyRequest) (plugin.Key, error) {
	return reply[plugin.Key](ctx, e, "ChangePassword", r)
}
func (e *echo) Recover(ctx context.Context, emit func(plugin.Event)) (plugin.RecoverReport, error) {
	e.operate(emit)
	return reply[plugin.RecoverReport](ctx, e, "Recover", nil)
}

func (e *echo) handFrames(ctx context.Context, method string, q any, fn func(plugin.Frame) error) error {
	for _, f := range e.frames {
		if err := fn(f); err != nil {
			return err
		}
	}
	_, err := reply[any](ctx, e, method, q)
	return err
}
func (e *echo) ReadDisk(ctx context.Context, r plugin.ReadDiskRequest, fn func(plugin.Frame) error) error {
	return e.handFrames(ctx, "ReadDisk", r, fn)
}
func (e *echo) ReadFile(ctx context.Context, r plugin.FileRequest, fn func(plugin.Frame) error) error {
	return e.handFrames(ctx, "ReadFile", r, fn)
}
func (e *echo) ListFiles(ctx context.Context, r plugin.FileRequest, fn func(plugin.File) error) error {
	for _, f := range e.files {
		if err := fn(f); err != nil {
			return err
		}
	}
	_, err := reply[any](ctx, e, "ListFiles", r)
	return err
}
func (e *echo) StatFile(ctx context.Context, r plugin.FileRequest) (plugin.File, error) {
	return reply[plugin.File](ctx, e, "StatFile", r)
}
func (e *echo) TarFiles(ctx context.Context, r plugin.FileRequest, fn func([]byte) error) error {
	for _, f := range e.frames {
		if err := fn(f.Data); err != nil {
			return err
		}
	}
	_, err := reply[any](ctx, e, "TarFiles", r)
	return err
}

var _ plugin.Service = (*echo)(nil)
