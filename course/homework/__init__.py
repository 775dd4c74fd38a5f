"""Homework: assign, collect, grade hostile code safely, give back.

sources -> editions (release)      what the author wrote -> what the student gets
collecting -> judging -> grading   what came in -> values from a sandbox -> points
gradebook -> feedback, exports     nbgrader's gradebook -> pages for students, files for the learning platform
"""
