// The monolith that a school would run otherwise: socket.io, its state in memory, and one awaited UPDATE for each join.
//
// Written as somebody competent would write it: prepared statements through a pool of 10, rooms for staff and students,
// socket.io's own defaults (permessage-deflate off), `ws` with its native masks (bufferutil). With REDIS_URL several of
// these are one, behind the Redis adapter: a session's rooms span them, and each reads a session that it does not know
// from Postgres, once.

import { createServer } from 'node:http'
import { createAdapter } from '@socket.io/redis-adapter'
import jwt from 'jsonwebtoken'
import pg from 'pg'
import { createClient } from 'redis'
import { Server } from 'socket.io'

const { DATABASE_URL, JWT_SECRET, PORT, REDIS_URL } = process.env

const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 10 })
const http = createServer()
const io = new Server(http, { serveClient: false })
const sessions = new Map() // id -> promise of { id, records: Map(student id -> record) }, or of null

class Refused extends Error {
  constructor(code) {
    super(code)
    this.code = code
  }
}

io.use((socket, next) => {
  try {
    const claims = jwt.verify(socket.handshake.auth.token, JWT_SECRET, { algorithms: ['HS256'] })
    socket.data.user = { id: claims.sub, role: claims.role, name: claims.name }
    next()
  } catch {
    next(new Error('unauthenticated'))
  }
})

io.on('connection', (socket) => {
  const { user } = socket.data
  const on = (event, handle) =>
    socket.on(event, async (payload, acknowledge = () => {}) => {
      try {
        acknowledge({ ok: true, ...(await handle(payload)) })
      } catch (error) {
        const code = error instanceof Refused ? error.code : 'internal'
        if (code === 'internal') console.error(error)
        socket.emit('attendanceError', { code, event })
        acknowledge({ ok: false, error: { code } })
      }
    })

  on('startAttendanceSession', async ({ session_id }) => {
    if (user.role !== 'teacher') throw new Refused('forbidden')
    await pool.query({
      name: 'start',
      text: `INSERT INTO records (session_id, student_id, student_name, status)
             SELECT s.id, r.student_id, r.student_name, 'absent'
             FROM sessions s JOIN roster r ON r.course_id = s.course_id WHERE s.id = $1 AND s.teacher_id = $2
             ON CONFLICT DO NOTHING`,
      values: [session_id, user.id],
    })
    sessions.delete(session_id)
    const session = await open(session_id)
    socket.join([staff(session_id), room(session_id)])
    const started = {
      session_id,
      totalStudents: session.records.size,
      attendanceRecords: [...session.records.values()],
      statistics: statistics(session),
    }
    socket.emit('attendanceSessionStarted', started)
    return started
  })

  on('joinAttendanceSession', async ({ session_id }) => {
    const session = await open(session_id)
    const record = session.records.get(user.id)
    if (record === undefined) throw new Refused('not_enrolled')
    if (record.joined_at === null) {
      const joined_at = new Date()
      await pool.query({
        name: 'join',
        text: `UPDATE records SET status = 'present', joined_at = $3
               WHERE session_id = $1 AND student_id = $2 AND joined_at IS NULL`,
        values: [session_id, user.id, joined_at],
      })
      record.status = 'present'
      record.joined_at = joined_at
    }
    socket.join(room(session_id))
    const { status, joined_at } = record
    io.to(staff(session_id)).emit('studentJoinedAttendance', {
      session_id,
      student_id: user.id,
      student_name: record.student_name,
      joined_at,
      status,
    })
    const joined = { session_id, message: 'Successfully joined attendance session', status, joined_at }
    socket.emit('attendanceSessionJoined', joined)
    return joined
  })

  on('markStudentAttendance', async ({ session_id, student_id, status }) => {
    if (user.role !== 'teacher') throw new Refused('forbidden')
    const session = await open(session_id)
    const record = session.records.get(student_id)
    if (record === undefined) throw new Refused('not_enrolled')
    await pool.query({
      name: 'mark',
      text: 'UPDATE records SET status = $3 WHERE session_id = $1 AND student_id = $2',
      values: [session_id, student_id, status],
    })
    record.status = status
    const updated = { session_id, student_id, status, statistics: statistics(session), updated_by: user.name }
    io.to(staff(session_id)).emit('attendanceUpdated', updated)
    io.to(room(session_id)).emit('attendanceProgress', { session_id, statistics: updated.statistics })
    return updated
  })
})

const staff = (session_id) => `staff:${session_id}`
const room = (session_id) => `session:${session_id}`

async function open(session_id) {
  if (!sessions.has(session_id)) sessions.set(session_id, load(session_id))
  const session = await sessions.get(session_id)
  if (session === null) {
    sessions.delete(session_id)
    throw new Refused('session_not_active')
  }
  return session
}

async function load(session_id) {
  const { rows } = await pool.query({
    name: 'load',
    text: 'SELECT student_id, student_name, status, joined_at FROM records WHERE session_id = $1',
    values: [session_id],
  })
  return rows.length === 0 ? null : { id: session_id, records: new Map(rows.map((row) => [row.student_id, row])) }
}

function statistics(session) {
  const counts = { present: 0, absent: 0, late: 0, excused: 0 }
  for (const record of session.records.values()) counts[record.status] += 1
  const totalStudents = session.records.size
  const counted = totalStudents - counts.excused
  return {
    totalStudents,
    presentCount: counts.present,
    absentCount: counts.absent,
    lateCount: counts.late,
    excusedCount: counts.excused,
    attendanceRate: counted === 0 ? null : Math.round((10000 * (counts.present + counts.late)) / counted) / 100,
  }
}

if (REDIS_URL) {
  const publisher = createClient({ url: REDIS_URL })
  const subscriber = publisher.duplicate()
  await Promise.all([publisher.connect(), subscriber.connect()])
  io.adapter(createAdapter(publisher, subscriber))
}
http.listen(Number(PORT), '127.0.0.1', () => console.log('listening'))
