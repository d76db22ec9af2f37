-- What the monolith keeps.
CREATE TABLE roster (
    course_id text NOT NULL,
    student_id text NOT NULL,
    student_name text NOT NULL,
    PRIMARY KEY (course_id, student_id)
);
CREATE TABLE sessions (
    id text PRIMARY KEY,
    course_id text NOT NULL,
    teacher_id text NOT NULL
);
CREATE TABLE records (
    session_id text NOT NULL,
    student_id text NOT NULL,
    student_name text NOT NULL,
    status text NOT NULL,
    joined_at timestamptz,
    PRIMARY KEY (session_id, student_id)
);
