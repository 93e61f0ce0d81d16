// To be imported before all else (node --import): the process's clock is off by CLOCK_SHIFT_MS. Timers are not.
const shiftMs = Number(process.env.CLOCK_SHIFT_MS)
const RealDate = Date

class ShiftedDate extends RealDate {
  constructor(...args: [] | [number | string | Date]) {
    super(args.length === 0 ? ShiftedDate.now() : args[0])
  }
  static override now(): number {
    return RealDate.now() + shiftMs
  }
}

globalThis.Date = ShiftedDate as DateConstructor
